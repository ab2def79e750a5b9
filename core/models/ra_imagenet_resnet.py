"""Wide ResNet-101-2 for ImageNet after the robust architecture principles of Peng et al. 2023 (arXiv 2308.16258).

Bottleneck blocks with SiLU and squeeze and excitation, after a stem of one strided convolution without pooling.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.squeeze_excitation import SqueezeExcitation

_GROUPS = 2


class Bottleneck(nn.Module):
    """1 x 1, grouped 3 x 3 and 1 x 1 convolutions, narrower by a factor of 4, beside a shortcut; SiLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        narrow = outputs // 4
        self.proj: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.proj = _normed(inputs, outputs, 1, stride)
        grouped = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1, groups=_GROUPS, bias=False)
        self.F = nn.Sequential()
        # The first convolution has no batch norm after it.
        self.F.add_module("a", nn.Sequential(nn.Conv2d(inputs, narrow, 1, bias=False), nn.SiLU()))
        self.F.add_module("b", nn.Sequential(grouped, nn.BatchNorm2d(narrow), nn.SiLU()))
        self.F.add_module("se", SqueezeExcitation(narrow, inputs // 4))
        self.F.add_module("c", _normed(narrow, outputs, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return SiLU of the shortcut plus the residual, (batch, outputs, height / stride, width / stride)."""
        shortcut = features if self.proj is None else self.proj(features)
        return F.silu(shortcut + self.F(features))


class RaImageNetResNet(nn.Module):
    """Map images (batch, channels, height, width), at least 32 pixels a side, to logits (batch, classes).

    depths: blocks of each stage. widths: channels of the stem and of each stage.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        depths: tuple[int, ...] = (7, 11, 18, 1),
        widths: tuple[int, ...] = (96, 512, 1024, 2016, 4032),
    ) -> None:
        super().__init__()
        stem = nn.Sequential(*_normed(channels, widths[0], 7, 2), nn.ReLU())
        self.stem = _named("stem", _named("stem", stem))
        self.stages = nn.Sequential()
        for stage, (depth, (inputs, outputs)) in enumerate(zip(depths, pairwise(widths), strict=True), start=1):
            blocks = [Bottleneck(inputs, outputs, 2), *(Bottleneck(outputs, outputs, 1) for _ in range(depth - 1))]
            named = nn.Sequential()
            for number, block in enumerate(blocks):
                named.add_module(f"stage{stage}-block{number}", block)
            self.stages.add_module(f"stage{stage}", named)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        return self.fc(F.adaptive_avg_pool2d(self.stages(self.stem(images)), 1).flatten(1))


def _normed(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _named(name: str, module: nn.Module) -> nn.Sequential:
    outer = nn.Sequential()
    outer.add_module(name, module)
    return outer
