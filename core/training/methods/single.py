"""Adversarial training in one norm (Madry et al. 2018, arXiv 1706.06083), also from an l_p-robust base to l_q."""

from torch import Tensor, nn

from core.training.methods import BatchLoss
from core.training.methods.adversary import Adversary


class Rule(Adversary):
    """Turns a batch into its loss under the one norm's attack."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack the batch, then take the mean loss of what came out."""
        (norm,) = self.counts
        found = self.attack(model, images, labels, norm)
        return BatchLoss(self.loss(model, images, labels, found.adversarial), norm)
