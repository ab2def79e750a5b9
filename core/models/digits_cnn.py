"""A small network for 8 x 8 digits: three 3 x 3 convolutions with batch norm, pooling to 2 x 2, one linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Map digits (batch, 1, 8, 8) in [0, 1] to logits (batch, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(_layer(1, 32), _layer(32, 64, stride=2), _layer(64, 64))
        self.classifier = nn.Linear(64 * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        return self.classifier(F.avg_pool2d(self.features(images), 2).flatten(1))


def _layer(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
