"""A network that tests of weights share."""

import pytest
import torch
from torch import nn

from core.models import Blueprint, build


@pytest.fixture
def network() -> nn.Module:
    """A digits network with weights of its own, running statistics included."""
    torch.manual_seed(3)
    network = build(Blueprint("digits-cnn", (1, 8, 8), 10))
    network(torch.rand(32, 1, 8, 8))
    return network.eval()
