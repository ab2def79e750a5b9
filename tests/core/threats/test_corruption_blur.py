"""Blurs against closed forms, plain loops, and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from core.schema.threats import SEVERITIES
from core.threats.corruptions import blur, corrupt
from core.threats.corruptions.motion import blur_along
from core.threats.corruptions.severities import arguments_of
from core.threats.corruptions.smoothing import smooth
from core.threats.corruptions.zooming import enlarge
from core.threats.random_numbers import PointNumbers

_SHAPES = [(3, 24, 31), (1, 64, 70)]
"""One for each table of severities."""


def _random(shape: tuple[int, ...], images: int = 2) -> Tensor:
    return torch.rand(images, *shape, generator=torch.Generator().manual_seed(1))


def _dot(size: int) -> Tensor:
    """A white pixel in the middle of a black image."""
    image = torch.zeros(1, 1, size, size)
    image[..., size // 2, size // 2] = 1
    return image


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"])
@pytest.mark.parametrize("shape", _SHAPES)
def test_blurs_keep_a_constant_image(name: str, shape: tuple[int, ...]) -> None:
    for level in (0.0, 100 / 255, 1.0):
        flat = torch.full((1, *shape), level)
        for severity in SEVERITIES:
            assert torch.allclose(corrupt(flat, name, severity, seed=0), flat, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 3.0])
@pytest.mark.parametrize(("border", "mode"), [("nearest", "nearest"), ("mirror", "reflect")])
def test_smoothing_is_scipys_gaussian_filter(sigma: float, border: str, mode: str) -> None:
    image = _random((1, 9, 14), 1)
    expected = ndimage.gaussian_filter(image[0, 0].double().numpy(), sigma, mode=mode, truncate=3)
    assert np.allclose(smooth(image, sigma, reach=3, border=border)[0, 0], expected, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("radius", "sigma"), [(0.3, 0.4), (0.5, 0.6), (1, 0.2), (1.5, 0.1), (8, 0.5), (10, 0.5)])
def test_a_disk_sums_to_one_and_is_symmetric(radius: float, sigma: float) -> None:
    kernel = blur.disk(radius, sigma)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert torch.allclose(kernel, kernel.T)
    assert torch.allclose(kernel, kernel.flip(0))


def test_a_disk_has_known_weights() -> None:
    within_one, lost = 1 / 5, math.exp(-0.5 / 0.2**2)
    side = lost / (1 + 2 * lost)
    assert float(blur.disk(1, 0.2)[2, 2]) == pytest.approx(
        within_one * (1 - 2 * side) ** 2 + 4 * within_one * side * (1 - 2 * side)
    )
    assert float(blur.disk(10, 0.5)[12, 12]) == pytest.approx(1 / 317)  # pixels within 10 of the middle one


def test_defocus_blur_mirrors_the_image_at_its_border_pixels() -> None:
    for shape in _SHAPES:
        image, arguments = _random(shape, 1), arguments_of("defocus_blur", 5, shape)
        kernel = blur.disk(**arguments).numpy()
        expected = ndimage.convolve(image[0, 0].double().numpy(), kernel, mode="mirror")
        found = blur.defocus_blur(image, **arguments)
        assert np.allclose(found[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(("degrees", "down", "right"), [(0, 0, -1), (90, -1, 0), (-90, 1, 0), (45, -1, -1)])
def test_motion_blur_spreads_a_pixel_along_a_line(degrees: float, down: int, right: int) -> None:
    radius, sigma = 3, 1.5
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(7)]
    blurred = blur_along(_dot(21), torch.tensor([degrees]), radius=radius, sigma=sigma)
    assert blurred.sum() == pytest.approx(1)
    # Of the steps along a diagonal, two can lie on one pixel.
    pixels = [0, 1, 1, 2, 3, 4, 4] if degrees == 45 else range(7)
    expected = torch.zeros(7)
    for pixel, weight in zip(pixels, weights, strict=True):
        expected[pixel] += weight / sum(weights)
    found = torch.stack([blurred[0, 0, 10 + step * down, 10 + step * right] for step in range(7)])
    assert torch.allclose(found, expected, atol=1e-6)


def test_motion_blur_repeats_the_border_pixels() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 5, 8) / 8
    blurred = blur_along(ramp, torch.tensor([0.0]), radius=6, sigma=2)
    weights = torch.tensor([math.exp(-0.5 * (step / 2) ** 2) for step in range(13)])
    weights /= weights.sum()
    for column in range(8):
        taken = torch.arange(column, column + 13).clamp(max=7) / 8
        assert blurred[0, 0, 2, column] == pytest.approx(float((weights * taken).sum()))


def test_each_image_has_an_angle_of_its_own_within_45_degrees() -> None:
    images = _dot(61).expand(40, 1, 61, 61) * torch.linspace(0.5, 1, 40)[:, None, None, None]
    blurred = blur.motion_blur(images, PointNumbers(0, images), radius=20, sigma=15)
    rows, columns = (torch.arange(61.0) - 30 for _ in range(2))
    down = (blurred.sum((1, 3)) * rows).sum(1)
    left = -(blurred.sum((1, 2)) * columns).sum(1)
    angles = torch.atan2(down, left).rad2deg()
    assert (left > 0).all()
    assert angles.abs().max() < 46
    assert angles.std() == pytest.approx(90 / math.sqrt(12), rel=0.25)


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.11, 1.26])
@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_zooming_is_scipys_zoom_of_the_middle(factor: float, size: tuple[int, int]) -> None:
    image = _random((1, *size), 1)
    parts = [math.ceil(side / factor) for side in size]
    starts = [(side - part) // 2 for side, part in zip(size, parts, strict=True)]
    rows, columns = (slice(start, start + part) for start, part in zip(starts, parts, strict=True))
    zoomed = ndimage.zoom(image[0, 0].double().numpy()[rows, columns], factor, order=1)
    trims = [(there - side) // 2 for there, side in zip(zoomed.shape, size, strict=True)]
    rows, columns = (slice(trim, trim + side) for trim, side in zip(trims, size, strict=True))
    assert np.allclose(enlarge(image, factor)[0, 0], zoomed[rows, columns], atol=1e-6)


def test_zoom_blur_averages_the_image_and_its_zooms() -> None:
    image = _random((3, 32, 32), 1)
    zooms = [enlarge(image, factor) for factor in np.arange(1, 1.06, 0.01)]
    assert len(zooms) == 7
    expected = (image + torch.stack(zooms).sum(0)) / 8
    assert torch.allclose(corrupt(image, "zoom_blur", 1, seed=0), expected, atol=1e-6)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_displaced_pixels_are_those_of_a_loop_over_pixels(reach: int) -> None:
    height, width = 18, 15
    images = _random((1, height, width))
    numbers = PointNumbers(4, images)
    offsets = (numbers.integers(2, 2 * height * width, 2 * reach) - reach).reshape(2, 2, height, width).numpy()
    found = blur.displace(numbers, 2, height, width, reach).numpy()
    for point in range(2):
        # Rows of pixels, so that a swap is that of NumPy's views, as for colours.
        pixels = np.arange(height * width).reshape(height, width, 1).repeat(3, 2)
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                down, right = offsets[point, :, row, column]
                other = row + down, column + right
                pixels[row, column], pixels[other] = pixels[other], pixels[row, column]
        assert np.array_equal(found[point], pixels[..., 0].flatten())
    assert (found != np.arange(height * width)).mean() > 0.15


def test_glass_blur_displaces_pixels_and_blurs_them() -> None:
    images = (_random((3, 32, 32)) * 255).round() / 255
    numbers = PointNumbers(0, images)
    found = blur.glass_blur(images, numbers, sigma=0.05, reach=1, repeats=1)
    source = blur.displace(numbers, 0, 32, 32, 1)
    for point in range(2):
        moved = images[point].flatten(1)[:, source[point]].reshape(3, 32, 32)
        assert torch.allclose(found[point].float(), moved, atol=1e-6)
