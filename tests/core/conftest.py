"""Models and data that tests of the library share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core import checkpoint, data
from core.data import Dataset

_CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """scikit-learn's digits."""
    return data.load("digits")


@pytest.fixture(scope="session")
def test_digits(digits: Dataset) -> tuple[Tensor, Tensor]:
    """The first 200 test digits and their labels."""
    part = digits.test.first(200)
    return part.images(), part.labels


@pytest.fixture
def base() -> nn.Module:
    """The shipped linf-robust digits model."""
    return checkpoint.load(checkpoint.base_model_file("digits-cnn-linf", None))[0]


@pytest.fixture(scope="session")
def cifar_archive() -> Path:
    """CIFAR-10 as JPEGs, which lies beside the checkout where it is developed and nowhere else."""
    path = Path(os.environ.get("TEMPER_CIFAR_ARCHIVE", _CIFAR))
    if not path.exists():
        pytest.skip("the CIFAR-10 (JPEG) archive is not on this machine; the digits show the same property")
    return path


@pytest.fixture
def two_class_linear() -> nn.Module:
    """A linear model with two logits for images of 3 x 16 x 16, with fixed random weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model[1].weight.copy_(0.1 * torch.randn(2, 768, generator=generator))
        model[1].bias.zero_()
    return model


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Float32 rounds differently from CPU to CPU and with the number of images, and an attack can take another turn for
    it; in float64 nothing of that shows."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
