"""Wide ResNets whose stages have a depth and a width each: WRN-34-R (Huang et al. 2021, arXiv 2110.03825) and WRN-A4
(Huang et al. 2022, arXiv 2212.11005).

Both papers ask where depth and width help robustness; the last stage is narrower than in a plain Wide ResNet.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.preact_resnet import PreActBlock
from core.models.wide_resnet import Group

_STEM = 16
_STRIDES = (1, 2, 2)


class WRN34R(nn.Module):
    """Map images (batch, channels, height, width), at least 4 pixels a side, to logits (batch, classes).

    Three stages of five blocks with 320, 640 and 512 channels.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (_STEM, 320, 640, 512)
        self.stem_conv = nn.Conv2d(channels, _STEM, 3, padding=1, bias=False)
        stages = zip(pairwise(widths), _STRIDES, strict=True)
        self.blocks = nn.Sequential(*(Group(5, inputs, outputs, stride) for (inputs, outputs), stride in stages))
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = F.relu(self.bn1(self.blocks(self.stem_conv(images))))
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))


class WRNA4(nn.Module):
    """Map images (batch, channels, height, width), at least 4 pixels a side, to logits (batch, classes).

    Three stages of 27, 28 and 13 blocks with SiLU and with 160, 448 and 384 channels.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths, depths = (_STEM, 160, 448, 384), (27, 28, 13)
        self.stem_conv = nn.Conv2d(channels, _STEM, 3, padding=1, bias=False)
        stages = zip(pairwise(widths), depths, _STRIDES, strict=True)
        self.blocks = nn.Sequential(
            *(_PreActStage(depth, inputs, outputs, stride) for (inputs, outputs), depth, stride in stages)
        )
        self.norm1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = F.silu(self.norm1(self.blocks(self.stem_conv(images))))
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))


class _PreActStage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        activation = nn.SiLU()
        rest = (PreActBlock(outputs, outputs, 1, activation) for _ in range(blocks - 1))
        self.layer = nn.Sequential(PreActBlock(inputs, outputs, stride, activation), *rest)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)
