"""RAMP: logit pairing between two norms (Jiang & Singh 2024, arXiv 2402.06827), in its form for fine-tuning.

The two norms are those with the worst trade-off between them, q and r in the order of `method.norms`; the paper finds
linf and l1 at the usual radii. The gradient projection that the paper adds for training from random weights is no part
of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.attacks.losses import kl_divergence
from core.schema.catalog import Norm
from core.schema.spec import Method
from core.training.methods import BatchLoss
from core.training.methods.adversary import Adversary
from core.training.methods.max import keep_worst


class Rule(Adversary):
    """Turns a batch into its loss under the worse of two attacks, plus how far the answers to the two lie apart."""

    def __init__(self, method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> None:
        super().__init__(method, eps, generator)
        assert method.pairing is not None
        self._pairing = method.pairing

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack in both norms; the loss is MAX's, and the pairing loss times its weight."""
        found = self.attack_each(model, images, labels)
        clean, (q, r) = self.logits(model, images, *(result.adversarial for result in found))
        worse = self.judge(clean, keep_worst(found, [q, r]), labels)
        apart, count = pair(q, r, labels)
        return BatchLoss(worse, norm=None, some=self._pairing * apart, count=count)


def pair(q: Tensor, r: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Take KL(softmax q || softmax r), summed over the points that q has right, and the number of these.

    q and r are logits (batch, classes) of the same images under two attacks, labels (batch,). The gradient flows
    through both. The loss is the mean over these points of the whole batch, zero where there is none.
    """
    right = q.argmax(1) == labels
    return (kl_divergence(r, labels, q) * right).sum(), int(right.sum())
