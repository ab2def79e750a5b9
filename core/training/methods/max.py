"""MAX: every norm's attack on every batch, and of each image only the worst (Tramèr & Boneh 2019, arXiv 1904.13000)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.attacks import AttackResult
from core.data.split import Batch
from core.training.methods.adversarial import AdversarialMethod, count_results
from core.training.methods.contract import BatchLoss, Counts, Shard


class MAX(AdversarialMethod):
    """The loss of each image under the norm whose attack reached the highest loss."""

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Attack in every norm, keep the worst point of each image, and return the mean loss of those."""
        del counts
        found = self.attack_each(model, batch, shard)
        results = list(found.values())
        worst = keep_worst(results, [result.adversarial for result in results])
        counted = count_results(found)
        return BatchLoss.of(lambda: BatchLoss(self.loss(model, batch, worst), norm=None, counts=counted))


def keep_worst(found: Sequence[AttackResult], values: Sequence[Tensor]) -> Tensor:
    """Keep for each point the value (batch, ...) that belongs to the attack of highest loss; of equals, the first."""
    worst = torch.stack([result.loss for result in found]).argmax(0)
    return torch.stack(list(values))[worst, torch.arange(len(worst), device=worst.device)]
