"""Stochastic adversarial training (SAT): a norm for each batch, every one as likely (Madaan et al. 2021)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.catalog import Norm
from core.methods import BatchLoss
from core.methods.adversary import Adversary
from core.spec import Method


class Rule(Adversary):
    """Draws a norm for each batch, then turns the batch into its loss under that norm's attack."""

    def __init__(self, method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> None:
        super().__init__(method, eps)
        self._generator = generator

    def weights(self) -> list[float]:
        """Say how likely each norm is to be drawn next, up to a common factor, in the order of `counts`."""
        return [1.0] * len(self.counts)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Draw, attack, and take the mean cross-entropy of what came out."""
        drawn = torch.multinomial(torch.tensor(self.weights()), 1, generator=self._generator)
        norm = list(self.counts)[int(drawn)]
        adversarial = self.attack(model, images, labels, norm)
        return BatchLoss(F.cross_entropy(model(adversarial), labels), norm)
