"""Contrast, saturation, elastic transform, pixelate and JPEG against closed forms and Pillow."""

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from core.schema.threats import SEVERITIES
from core.threats.corruptions import corrupt, digital
from core.threats.corruptions.bilinear import sample
from core.threats.corruptions.severities import arguments_of
from core.threats.random_numbers import PointNumbers

_PILLOW_SHAPES = [(3, 32, 32), (1, 8, 8), (3, 33, 47), (3, 64, 80)]


def _bytes(shape: tuple[int, ...], images: int = 2) -> Tensor:
    return torch.randint(0, 256, (images, *shape), generator=torch.Generator().manual_seed(1)) / 255


def _to_pillow(image: Tensor) -> Image.Image:
    pixels = (image * 255).round().byte()
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)) / 255


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", _PILLOW_SHAPES)
def test_pixelate_gives_the_bytes_of_pillows_box_filter(shape: tuple[int, ...], severity: int) -> None:
    images = _bytes(shape)
    factor = arguments_of("pixelate", severity, shape)["factor"]
    height, width = shape[1:]
    for image, found in zip(images, corrupt(images, "pixelate", severity, seed=0), strict=True):
        smaller = _to_pillow(image).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
        assert torch.equal(found, _from_pillow(smaller.resize((width, height), Image.Resampling.BOX)))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", _PILLOW_SHAPES)
def test_jpeg_compression_is_pillows(shape: tuple[int, ...], severity: int) -> None:
    images = _bytes(shape)
    quality = arguments_of("jpeg_compression", severity, shape)["quality"]
    for image, found in zip(images, corrupt(images, "jpeg_compression", severity, seed=0), strict=True):
        file = BytesIO()
        _to_pillow(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            assert torch.equal(found, _from_pillow(decoded))


def test_contrast_keeps_the_mean_and_scales_the_deviation() -> None:
    images = _bytes((3, 16, 20))
    for severity, factor in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        flatter = corrupt(images, "contrast", severity, seed=0)
        assert torch.allclose(flatter.mean((2, 3)), images.mean((2, 3)), atol=1e-5)
        assert torch.allclose(flatter.std((2, 3)), factor * images.std((2, 3)), atol=1e-5)


def test_saturate_changes_the_saturation_of_hsv() -> None:
    images = _bytes((3, 6, 7))
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 0.4
    table = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    for severity, (factor, amount) in zip(SEVERITIES, table, strict=True):
        changed = corrupt(images, "saturate", severity, seed=0).permute(0, 2, 3, 1).reshape(-1, 3)
        for before, after in zip(images.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), changed.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            wanted = min(1, saturation * factor + amount)
            assert after == pytest.approx(colorsys.hsv_to_rgb(hue, wanted, value), abs=1e-5)


def test_an_elastic_transform_of_nothing_is_the_identity() -> None:
    images = _bytes((3, 20, 33))
    numbers = PointNumbers(0, images)
    still = digital.elastic_transform(images, numbers, side=32, displacement=0, sigma=1, jitter=0)
    assert torch.allclose(still, images, atol=1e-6)
    zero_field = digital.elastic_transform(images, numbers, side=32, displacement=1e-9, sigma=1, jitter=0)
    assert torch.allclose(zero_field, images, atol=1e-6)


def test_the_affine_map_takes_three_corners_of_a_square_to_jittered_places() -> None:
    height, width, jitter = 40, 32, 2.5
    images = _bytes((1, height, width), 6)
    uniform = PointNumbers(0, images).uniform(0, 6)
    rows, columns = torch.meshgrid(torch.arange(40.0).double(), torch.arange(32.0).double(), indexing="ij")
    from_rows, from_columns = digital._affine(uniform, jitter, rows, columns)
    corners = torch.tensor([[10, 10], [10, -10], [-10, -10]]).double() + torch.tensor([16, 20])
    places = corners + (uniform.double().reshape(-1, 3, 2) * 2 - 1) * jitter
    for point in range(6):
        # An affine map is known by its values at the origin and one pixel away.
        for place, corner in zip(places[point], corners, strict=True):
            for coordinates, expected in ((from_columns[point], corner[0]), (from_rows[point], corner[1])):
                origin = coordinates[0, 0]
                across, down = coordinates[0, 1] - origin, coordinates[1, 0] - origin
                assert float(origin + across * place[0] + down * place[1]) == pytest.approx(float(expected), abs=1e-6)
    assert (places - corners).abs().max() <= jitter


def test_the_field_of_an_elastic_transform_scales_with_the_image() -> None:
    ramp = torch.linspace(0.2, 0.8, 60).expand(1, 1, 60, 60)
    small = ramp[..., :30, 15:45]
    moved = []
    for images in (ramp, small):
        field = digital.elastic_transform(images, PointNumbers(0, images), side=30, displacement=20, sigma=2, jitter=0)
        moved.append((field - images).std() / (0.6 / 59))
    assert moved[0] == pytest.approx(2 * float(moved[1]), rel=0.3)
    # A uniform number has the deviation 1 / sqrt(3), and smoothing divides it by 2 sigma sqrt(pi).
    assert moved[1] == pytest.approx(20 / 3**0.5 / (2 * 2 * torch.pi**0.5), rel=0.25)


@pytest.mark.parametrize(("mirror", "mode"), [("pixel", "mirror"), ("edge", "reflect")])
def test_samples_between_and_beyond_pixels_are_scipys(mirror: str, mode: str) -> None:
    from scipy import ndimage

    images = _bytes((2, 7, 9), 3)
    generator = torch.Generator().manual_seed(2)
    rows, columns = (torch.rand(3, 7, 9, generator=generator, dtype=torch.float64) * 60 - 30 for _ in range(2))
    found = sample(images, rows, columns, mirror=mirror)  # type: ignore[arg-type]
    for point in range(3):
        for channel in range(2):
            at = np.stack([rows[point].numpy(), columns[point].numpy()])
            expected = ndimage.map_coordinates(images[point, channel].double().numpy(), at, order=1, mode=mode)
            assert np.allclose(found[point, channel], expected, atol=1e-5)
