"""Squeeze and excitation (Hu et al. 2018, arXiv 1709.01507): weights for the channels, from their means."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Scale each channel of (batch, channels, height, width) by a number in [0, 1] that depends on all their means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scaled features, of the same shape."""
        means = F.adaptive_avg_pool2d(features, 1)
        return features * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))
