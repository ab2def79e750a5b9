"""RAMP: logit pairing between two norms (Jiang & Singh 2024, arXiv 2402.06827), in its form for fine-tuning.

The two norms are those with the worst trade-off between them, q and r in the order of `method.norms`; the paper finds
linf and l1 at the usual radii. The gradient projection that the paper adds for training from random weights is not
implemented.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.attacks.losses import kl_divergence
from core.data.split import Batch
from core.schema.catalog import Norm
from core.schema.method import Method
from core.training.methods.adversarial import AdversarialMethod, count_results
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import BatchLoss, Counts, Shard
from core.training.methods.max import keep_worst


class RAMP(AdversarialMethod):
    """The loss under the worse of two attacks, plus the divergence between the answers to the two."""

    def __init__(
        self,
        method: Method,
        eps: Mapping[Norm, float],
        generator: torch.Generator,
        attacked: AttackedModel,
        label_smoothing: float,
    ) -> None:
        super().__init__(method, eps, generator, attacked, label_smoothing)
        assert method.pairing is not None
        self._pairing = method.pairing

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Attack in both norms; the loss is that of MAX, plus the pairing loss times its weight."""
        del counts
        found = self.attack_each(model, batch, shard)
        results = list(found.values())

        def compute() -> BatchLoss:
            clean, (q, r) = self.logits(model, batch.images, *(result.adversarial for result in results))
            worst = self.loss_of_logits(clean, keep_worst(results, [q, r]), batch.labels)
            divergence, pairs = pair(q, r, batch.labels)
            return BatchLoss(
                worst,
                norm=None,
                counts=count_results(found),
                masked_sum=self._pairing * divergence,
                masked_count=pairs,
            )

        return BatchLoss.of(compute)


def pair(q: Tensor, r: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return KL(softmax q || softmax r), summed over the points that q classifies correctly, and their number.

    q and r are logits (batch, classes) of the same images under two attacks, labels (batch,). The gradient flows
    through both. The pairing loss is the mean over these points of the whole batch, zero where there are none.
    """
    right = q.argmax(1) == labels
    return (kl_divergence(r, labels, q) * right).sum(), int(right.sum())
