"""PAT: perceptual adversarial training (Laidlaw et al. 2021, arXiv 2006.12655), bounded by the model's own features.

It attacks no l_p ball: robustness to linf, l2 and l1 is a side effect.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from core.attacks import CHECKED
from core.attacks.perceptual import perceptual
from core.attacks.threat import PerceptualThreat
from core.data.split import Batch
from core.schema.catalog import Norm
from core.schema.method import Method
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import BatchLoss, Counts, Shard


class PAT:
    """The loss of adversarial images whose features are close to those of the clean images."""

    def __init__(
        self,
        method: Method,
        eps: Mapping[Norm, float],
        generator: torch.Generator,
        attacked: AttackedModel,
        label_smoothing: float,
    ) -> None:
        del eps, attacked
        assert method.bound is not None
        self._threat = PerceptualThreat(method.bound)
        self._margin_limit = method.margin_limit
        self._generator = generator
        self._label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Attack the images that the model classifies correctly, and return the mean cross-entropy of all images."""
        del counts
        images, labels = batch
        shape, source = images.shape[1:], self._generator
        noise = shard.draw(
            len(images), lambda count: torch.randn(count, *shape, generator=source, device=source.device)
        )
        found = perceptual(model, images, labels, self._threat, CHECKED, noise=noise, margin_limit=self._margin_limit)

        def compute() -> BatchLoss:
            logits = model(found.adversarial)
            return BatchLoss(F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing), norm=None)

        return BatchLoss.of(compute)
