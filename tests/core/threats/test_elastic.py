"""Elastic deformation: the identity, shifts by whole pixels, and the smoothing window."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.schema.errors import BadInput
from core.threats.elastic import ElasticThreat, elastic, shift_pixels, smooth


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 32), (2, 224, 50)])
def test_a_zero_field_is_the_identity(shape: tuple[int, int, int]) -> None:
    images, field = torch.rand(2, *shape), torch.zeros(2, 2, *shape[1:])
    for outside in ("border", "zeros"):
        torch.testing.assert_close(shift_pixels(images, smooth(field), outside=outside), images, atol=2e-5, rtol=0)


def test_a_constant_field_takes_each_pixel_from_its_side() -> None:
    images, field = torch.rand(1, 3, 5, 7), torch.zeros(1, 2, 5, 7)
    field[:, 0], field[:, 1] = 2, -1
    smoothed = smooth(field)
    torch.testing.assert_close(smoothed, field)
    found = shift_pixels(images, smoothed)
    expected = F.pad(images, (0, 2, 1, 0), mode="replicate")[:, :, :5, 2:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    dark = shift_pixels(images, smoothed, outside="zeros")
    torch.testing.assert_close(dark, F.pad(images, (0, 2, 1, 0))[:, :, :5, 2:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "window", "deviation"), [(32, 5, 3 / 224 * 32), (224, 25, 3), (8, 3, 3 / 28)])
def test_window_is_that_of_the_authors_for_their_sizes(side: int, window: int, deviation: float) -> None:
    field = torch.zeros(1, 2, side, side, dtype=torch.float64)
    middle, half = side // 2, window // 2
    field[:, :, middle, middle] = 1
    found = smooth(field)[0, 0]
    offsets = range(-half, half + 1)
    weights = torch.tensor([math.exp(-((i / deviation) ** 2) / 2) for i in offsets], dtype=torch.float64)
    weights = weights / weights.sum()
    square = slice(middle - half, middle + half + 1)
    torch.testing.assert_close(found[square, square], weights[:, None] * weights)
    assert torch.isclose(found.sum(), torch.tensor(1.0, dtype=torch.float64))


class _Bright(nn.Module):
    """Has class 0 the more, the brighter the image is, and never another."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.mean((1, 2, 3))
        return torch.stack([total + 9, total**2], 1)


def test_compat_sees_black_outside_the_image_and_the_default_its_edge() -> None:
    images, labels = torch.ones(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64)
    threat = ElasticThreat(2.0)
    default, compat = (elastic(_Bright(), images, labels, threat, steps=5, compat=on) for on in (False, True))
    torch.testing.assert_close(default.adversarial, images)
    # A white image that is shifted within itself stays as it is: there is no gradient.
    assert default.no_gradient.all()
    assert compat.adversarial.min() < 0.9
    assert threat.contains(images, compat.adversarial).all()
    assert not compat.no_gradient.any()


def test_a_shift_out_of_the_image_is_refused() -> None:
    ElasticThreat(7.9).check((1, 8, 20))
    with pytest.raises(BadInput, match="by 8, out of an image whose shorter side is 8") as caught:
        ElasticThreat(8).check((1, 8, 20))
    assert caught.value.field == "evaluation.unseen"


def test_contains_rejects_values_that_are_not_near() -> None:
    images, threat = torch.zeros(2, 1, 9, 9), ElasticThreat(1.5)
    images[:, :, 4, 4] = 1
    moved = torch.zeros(2, 1, 9, 9)
    moved[0, 0, 2, 6], moved[1, 0, 1, 4] = 0.5, 0.5
    assert threat.contains(images, moved).tolist() == [True, False]
