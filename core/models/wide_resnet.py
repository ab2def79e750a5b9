"""Wide ResNets (Zagoruyko & Komodakis 2016, arXiv 1605.07146), with the layers and names of TRADES.

Carmon et al. 2019, Zhang et al. 2019 and most robust WideResNets of that time share these names. Some of their
checkpoints also contain a `sub_block1`, which the network never runs; it is ignored.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.activations import Activation


class Block(nn.Module):
    """Batch norm, activation, convolution, twice; the shortcut starts after the first activation where it projects."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activate = activation
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features plus the residual, (batch, channels, height, width)."""
        active = self.activate(self.bn1(features))
        shortcut = features if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(self.activate(self.bn2(self.conv1(active)))) + shortcut


class Group(nn.Module):
    """Blocks of one width, the first of which may halve the image."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, activation: Activation = F.relu) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride, activation)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1, activation) for _ in range(blocks - 1)))

    def forward(self, features: Tensor) -> Tensor:
        """Run the blocks: (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).

        Half a pixel counts as one.
        """
        return self.layer(features)


class WideResNet(nn.Module):
    """Map images (batch, channels, height, width), at least 4 pixels a side, to logits (batch, classes).

    depth: layers, 4 more than a multiple of 6. width: factor by which it is wider than a plain ResNet.
    """

    unused: tuple[str, ...] = ("sub_block1.",)
    """Prefixes of parameters that published checkpoints contain and the network never runs."""

    def __init__(self, depth: int, width: int, *, channels: int, classes: int, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activate = activation
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Group(blocks, 16, 16 * width, 1, activation)
        self.block2 = Group(blocks, 16 * width, 32 * width, 2, activation)
        self.block3 = Group(blocks, 32 * width, 64 * width, 2, activation)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs of the last layer, (batch, 64 * width)."""
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        return F.adaptive_avg_pool2d(self.activate(self.bn1(features)), 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        return self.fc(self.features(images))
