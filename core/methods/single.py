"""Adversarial training in one norm (Madry et al. 2018, arXiv 1706.06083), also from an l_p-robust base to l_q."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.catalog import Norm
from core.methods import BatchLoss
from core.methods.adversary import Adversary
from core.spec import Method


class Rule(Adversary):
    """Turns a batch into its loss under the one norm's attack."""

    def __init__(self, method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> None:
        del generator
        super().__init__(method, eps)
        (self._norm,) = method.norms

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack the batch, then take the mean cross-entropy of what came out."""
        adversarial = self.attack(model, images, labels, self._norm)
        return BatchLoss(F.cross_entropy(model(adversarial), labels), self._norm)
