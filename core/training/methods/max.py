"""MAX: every norm's attack on every batch, and of each image only the worst (Tramèr & Boneh 2019, arXiv 1904.13000)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.attacks import AttackResult
from core.training.methods import BatchLoss
from core.training.methods.adversary import Adversary


class Rule(Adversary):
    """Turns a batch into the loss of each image under whichever norm's attack drove its loss highest."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack in every norm, keep the worst point of each image, and take the mean loss of those."""
        found = self.attack_each(model, images, labels)
        worst = keep_worst(found, [result.adversarial for result in found])
        return BatchLoss(self.loss(model, images, labels, worst), norm=None)


def keep_worst(found: Sequence[AttackResult], values: Sequence[Tensor]) -> Tensor:
    """Keep of each point the value (batch, ...) that belongs to the attack of highest loss; of equals, the first."""
    worst = torch.stack([result.loss for result in found]).argmax(0)
    return torch.stack(list(values))[worst, torch.arange(len(worst), device=worst.device)]
