"""PAT: perceptual adversarial training (Laidlaw et al. 2021, arXiv 2006.12655), bounded by the model's own features.

It attacks no l_p ball: what it gives against linf, l2 and l1 is by the way.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks.perceptual import perceptual
from core.attacks.threat import PerceptualThreat
from core.schema.catalog import Norm
from core.schema.events import NormCount
from core.schema.spec import Method
from core.training.methods import BatchLoss, Share


class Rule:
    """Turns a batch into its loss at points that look alike to the model."""

    def __init__(self, method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> None:
        del eps
        assert method.bound is not None
        self.counts: dict[Norm, NormCount] = {}
        self.share = Share()
        self._bound = method.bound
        self._generator = generator

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack the images that the model has right, leave the others, and take the mean cross-entropy."""
        shape, source = images.shape[1:], self._generator
        noise = self.share.draw(
            len(images), lambda count: torch.randn(count, *shape, generator=source, device=source.device)
        )
        found = perceptual(model, images, labels, PerceptualThreat(self._bound), noise=noise)
        return BatchLoss(F.cross_entropy(model(found.adversarial), labels), norm=None)
