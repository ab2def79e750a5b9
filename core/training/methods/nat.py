"""Natural training: the cross-entropy of the clean images. No attack, so no robustness; a baseline."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from core.data.split import Batch
from core.schema.catalog import Norm
from core.schema.method import Method
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import BatchLoss, Counts, Shard


class Natural:
    """The loss of the clean images."""

    def __init__(
        self,
        method: Method,
        eps: Mapping[Norm, float],
        generator: torch.Generator,
        attacked: AttackedModel,
        label_smoothing: float,
    ) -> None:
        del method, eps, generator, attacked
        self._label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Return the mean cross-entropy."""
        del shard, counts

        def compute() -> BatchLoss:
            logits = model(batch.images)
            return BatchLoss(F.cross_entropy(logits, batch.labels, label_smoothing=self._label_smoothing), norm=None)

        return BatchLoss.of(compute)
