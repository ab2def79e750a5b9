"""Natural training: the cross-entropy of the clean images. No attack, so no robustness; a baseline."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.schema.catalog import Norm
from core.schema.events import NormCount
from core.schema.spec import Method
from core.training.methods import BatchLoss, Share


class Rule:
    """Turns a batch into its natural loss."""

    def __init__(self, method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> None:
        del method, eps, generator
        self.counts: dict[Norm, NormCount] = {}
        self.share = Share()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Take the mean cross-entropy."""
        return BatchLoss(F.cross_entropy(model(images), labels), norm=None)
