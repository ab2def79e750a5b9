"""AVG: every norm's attack on every batch, and the mean of their losses (Tramèr & Boneh 2019, arXiv 1904.13000)."""

from torch import nn

from core.data.split import Batch
from core.training.methods.adversarial import AdversarialMethod, count_results
from core.training.methods.contract import BatchLoss, Counts, Shard


class AVG(AdversarialMethod):
    """The mean of the losses under each norm's attack."""

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Attack in every norm, then update on all adversarial batches as one, as the authors' code does."""
        del counts
        found = self.attack_each(model, batch, shard)
        adversarial, counted = [result.adversarial for result in found.values()], count_results(found)
        return BatchLoss.of(lambda: BatchLoss(self.loss(model, batch, *adversarial), norm=None, counts=counted))
