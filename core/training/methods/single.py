"""Adversarial training in one norm (Madry et al. 2018, arXiv 1706.06083), also from an l_p-robust base to l_q."""

from torch import nn

from core.data.split import Batch
from core.training.methods.adversarial import AdversarialMethod, count_results
from core.training.methods.contract import BatchLoss, Counts, Shard


class SingleNorm(AdversarialMethod):
    """The loss under the one norm's attack."""

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Attack the batch and return the mean loss of the adversarial images."""
        del counts
        (norm,) = self.norms
        found = self.attack(model, batch, shard, norm)
        counted = count_results({norm: found})
        return BatchLoss.of(lambda: BatchLoss(self.loss(model, batch, found.adversarial), norm, counted))
