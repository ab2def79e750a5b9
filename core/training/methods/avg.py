"""AVG: every norm's attack on every batch, and the mean of their losses (Tramèr & Boneh 2019, arXiv 1904.13000)."""

from torch import Tensor, nn

from core.training.methods import BatchLoss
from core.training.methods.adversary import Adversary


class Rule(Adversary):
    """Turns a batch into the mean of its losses under each norm's attack."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack in every norm, then update on all adversarial batches as one, as the authors' code does."""
        found = self.attack_each(model, images, labels)
        return BatchLoss(self.loss(model, images, labels, *(result.adversarial for result in found)), norm=None)
