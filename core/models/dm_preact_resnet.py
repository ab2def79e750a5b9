"""Pre-activation ResNet-18 with SiLU, with the layers and names of Rebuffi et al. 2021 (arXiv 2103.01946).

It differs from `core.models.preact_resnet` in three more ways: the shortcut is a 3 x 3 convolution and takes the
features before batch norm, strided convolutions pad only below and to the right, as in TensorFlow, and the parameters
have other names. Rade et al. 2021 and Gowal et al. 2021 publish weights of it.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Batch norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False)
        self._border = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the shortcut plus the residual, (batch, channels, height, width)."""
        shortcut = features if self.shortcut is None else self.shortcut(F.pad(features, self._border))
        residual = self.conv_2d_1(F.pad(F.silu(self.batchnorm_0(features)), self._border))
        return self.conv_2d_2(F.silu(self.batchnorm_1(residual))) + shortcut


class DMPreActResNet18(nn.Module):
    """Map images (batch, channels, height, width) in [0, 1], at least 8 pixels a side, to logits (batch, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_2d = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer_0 = _stage(64, 64, 1)
        self.layer_1 = _stage(64, 128, 2)
        self.layer_2 = _stage(128, 256, 2)
        self.layer_3 = _stage(256, 512, 2)
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        features = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(images)))))
        return self.logits(F.adaptive_avg_pool2d(F.silu(self.batchnorm(features)), 1).flatten(1))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1))
