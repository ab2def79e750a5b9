"""Wide ResNet-70-16 after the robust architecture principles of Peng et al. 2023 (arXiv 2308.16258), for small images.

Its blocks are those of `core.models.dm_wide_resnet` with squeeze and excitation at their end; the stem is wider, and
the stages have a depth and a width each.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from core.models import dm_wide_resnet
from core.models.squeeze_excitation import SqueezeExcitation

_MOMENTUM = 0.01


class Block(dm_wide_resnet.Block):
    """A block whose residual ends with squeeze and excitation, a quarter as wide."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.se = SqueezeExcitation(outputs, outputs // 4)

    def residual(self, active: Tensor) -> Tensor:
        """Return what is added to the shortcut, from the features after the first activation."""
        return self.se(super().residual(active))


class RaWideResNet(nn.Module):
    """Map images (batch, channels, height, width), at least 4 pixels a side, to logits (batch, classes).

    depths: blocks of each stage. widths: channels of the stem and of each stage.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        depths: tuple[int, ...] = (30, 31, 10),
        widths: tuple[int, ...] = (96, 216, 432, 864),
    ) -> None:
        super().__init__()
        self.init_conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        stages = zip(depths, pairwise(widths), (1, 2, 2), strict=True)
        self.layer = nn.Sequential(*(_Stage(depth, *ends, stride) for depth, ends, stride in stages))
        self.batchnorm = nn.BatchNorm2d(widths[-1])
        self.logits = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _MOMENTUM

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = F.silu(self.batchnorm(self.layer(self.init_conv(images))))
        return self.logits(F.adaptive_avg_pool2d(features, 1).flatten(1))


class _Stage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = (Block(outputs, outputs, 1) for _ in range(blocks - 1))
        self.block = nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, features: Tensor) -> Tensor:
        return self.block(features)
