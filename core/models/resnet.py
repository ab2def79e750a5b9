"""ResNets for small images (He et al. 2015, arXiv 1512.03385): a 3 x 3 stem without pooling, 18 or 50 layers.

The names of the parameters are those of MadryLab's robustness library for CIFAR-10, which most CIFAR code shares.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features plus the residual, (batch, channels, height, width)."""
        residual = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(residual)) + self.shortcut(features))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1 that narrow and widen, beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features plus the residual, (batch, channels, height, width)."""
        residual = F.relu(self.bn1(self.conv1(features)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        return F.relu(self.bn3(self.conv3(residual)) + self.shortcut(features))


class ResNet(nn.Module):
    """Map images (batch, channels, height, width), at least 8 pixels a side, to logits (batch, classes)."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], *, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        wider = block.expansion
        self.layer1 = _stage(block, 64, 64, 1, blocks[0])
        self.layer2 = _stage(block, 64 * wider, 128, 2, blocks[1])
        self.layer3 = _stage(block, 128 * wider, 256, 2, blocks[2])
        self.layer4 = _stage(block, 256 * wider, 512, 2, blocks[3])
        self.linear = nn.Linear(512 * wider, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))


def resnet_18(channels: int, classes: int) -> ResNet:
    """Build the ResNet of 18 layers; 11.2 million parameters for 10 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), channels=channels, classes=classes)


def resnet_50(channels: int, classes: int) -> ResNet:
    """Build the ResNet of 50 layers; 23.5 million parameters for 10 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), channels=channels, classes=classes)


def _stage(block: type[BasicBlock | Bottleneck], inputs: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, width, stride), *rest)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
