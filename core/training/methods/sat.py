"""Stochastic adversarial training (SAT): a norm for each batch, every one as likely (Madaan et al. 2021)."""

import torch
from torch import Tensor, nn

from core.training.methods import BatchLoss
from core.training.methods.adversary import Adversary


class Rule(Adversary):
    """Draws a norm for each batch, then turns the batch into its loss under that norm's attack."""

    def weights(self) -> list[float]:
        """Say how likely each norm is to be drawn next, up to a common factor, in the order of `counts`."""
        return [1.0] * len(self.counts)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Draw, attack, and take the mean loss of what came out."""
        drawn = torch.multinomial(torch.tensor(self.weights()), 1, generator=self._generator)
        norm = list(self.counts)[int(drawn)]
        found = self.attack(model, images, labels, norm)
        return BatchLoss(self.loss(model, images, labels, found.adversarial), norm)
