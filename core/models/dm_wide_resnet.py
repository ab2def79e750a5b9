"""Wide ResNets with SiLU, with the layers and names of Gowal et al. 2020 (arXiv 2010.03593) and later DeepMind papers.

They differ from `core.models.wide_resnet` in two more ways: strided convolutions pad only below and to the right, as in
TensorFlow, and images whose sides are not multiples of 8 are padded with zeros before they are normalised.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.activations import Activation


class Block(nn.Module):
    """Batch norm, activation, convolution, twice; the shortcut starts after the first activation where it projects."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = F.silu) -> None:
        super().__init__()
        self.activate = activation
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self._border = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features plus the residual, (batch, channels, height, width)."""
        active = self.activate(self.batchnorm_0(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.residual(active) + shortcut

    def residual(self, active: Tensor) -> Tensor:
        """Return what is added to the shortcut, from the features after the first activation."""
        return self.conv_1(self.activate(self.batchnorm_1(self.conv_0(F.pad(active, self._border)))))


class Group(nn.Module):
    """Blocks of one width, the first of which may halve the image."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, activation: Activation = F.silu) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride, activation)
        self.block = nn.Sequential(first, *(Block(outputs, outputs, 1, activation) for _ in range(blocks - 1)))

    def forward(self, features: Tensor) -> Tensor:
        """Run the blocks: (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).

        Half a pixel counts as one.
        """
        return self.block(features)


class DMWideResNet(nn.Module):
    """Map images (batch, channels, height, width) in [0, 1] to logits (batch, classes).

    depth: layers, 4 more than a multiple of 6. width: factor by which it is wider than a plain ResNet. mean, std: the
    normalisation per channel, applied inside the network; empty for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        channels: int,
        classes: int,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        activation: Activation = F.silu,
    ) -> None:
        super().__init__()
        self.activate = activation
        blocks = (depth - 4) // 6
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            Group(blocks, 16, 16 * width, 1, activation),
            Group(blocks, 16 * width, 32 * width, 2, activation),
            Group(blocks, 32 * width, 64 * width, 2, activation),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Pad, normalise, classify: (batch, channels, height, width) to (batch, classes)."""
        below, right = -images.shape[2] % 8, -images.shape[3] % 8
        images = F.pad(images, (right // 2, right - right // 2, below // 2, below - below // 2))
        features = self.layer(self.init_conv((images - self.mean) / self.std))
        features = self.activate(self.batchnorm(features))
        return self.logits(F.adaptive_avg_pool2d(features, 1).flatten(1))
