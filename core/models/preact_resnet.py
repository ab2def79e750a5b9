"""Pre-activation ResNets for small images (He et al. 2016, arXiv 1603.05027): 18 layers, and 8 for work without a GPU.

The E-AT paper fine-tunes the network of 18 layers, with softplus inside the blocks and a ReLU before the pooling.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Batch norm, activation, convolution, twice; the shortcut starts after the first activation where it projects."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features plus the residual, (batch, channels, height, width)."""
        active = self.activation(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.activation(self.bn2(self.conv1(active)))) + shortcut


class RawShortcutBlock(PreActBlock):
    """A block whose shortcut takes the features before the first batch norm."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the features plus the residual, (batch, channels, height, width)."""
        shortcut = features if self.shortcut is None else self.shortcut(features)
        residual = self.conv1(self.activation(self.bn1(features)))
        return self.conv2(self.activation(self.bn2(residual))) + shortcut


class PreActResNet18(nn.Module):
    """Map images (batch, channels, height, width) in [0, 1], at least 8 pixels a side, to logits (batch, classes).

    Parameters are named as in Fast-AT (Wong et al. 2020, arXiv 2001.03994).
    """

    unused = ("model_preact_hl1.",)
    """How parameters begin that the field's checkpoints hold and no network of this family runs."""

    def __init__(self, channels: int, classes: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = _stage(64, 64, 1, activation)
        self.layer2 = _stage(64, 128, 2, activation)
        self.layer3 = _stage(128, 256, 2, activation)
        self.layer4 = _stage(256, 512, 2, activation)
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        features = F.adaptive_avg_pool2d(F.relu(self.bn(features)), 1)
        return self.linear(features.flatten(1))


class FastATResNet18(nn.Module):
    """Map images (batch, channels, height, width) in [0, 1], at least 8 pixels a side, to logits (batch, classes).

    The variant of Fast-AT (Wong et al. 2020) and of Andriushchenko & Flammarion 2020 (arXiv 2007.02617): ReLU, neither
    batch norm nor ReLU before the pooling, and shortcuts that take the features before batch norm.
    """

    unused = PreActResNet18.unused

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        activation = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = _stage(64, 64, 1, activation, RawShortcutBlock)
        self.layer2 = _stage(64, 128, 2, activation, RawShortcutBlock)
        self.layer3 = _stage(128, 256, 2, activation, RawShortcutBlock)
        self.layer4 = _stage(256, 512, 2, activation, RawShortcutBlock)
        self.linear = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))


class PreActResNet8(nn.Module):
    """Map images (batch, channels, height, width) in [0, 1], at least 8 pixels a side, to logits (batch, classes).

    304,000 parameters, and 11.5 million multiply-adds for an image of 32 x 32: a fiftieth of PreAct ResNet-18.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        activation = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        widths = (16, 32, 64, 128)
        self.layers = nn.Sequential(*(PreActBlock(a, b, 2, activation) for a, b in pairwise(widths)))
        self.bn = nn.BatchNorm2d(128)
        self.linear = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = F.relu(self.bn(self.layers(self.conv1(images))))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))


def _stage(
    inputs: int, outputs: int, stride: int, activation: nn.Module, block: type[PreActBlock] = PreActBlock
) -> nn.Sequential:
    return nn.Sequential(block(inputs, outputs, stride, activation), block(outputs, outputs, 1, activation))
