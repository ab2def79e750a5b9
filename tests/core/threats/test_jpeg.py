"""JPEG against Pillow, and the attack on its coefficients."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from core.attacks import Returning
from core.threats.jpeg import JpegThreat, join_planes, jpeg, split_planes
from core.threats.jpeg_codec import STANDARD, Tables, compress, decode, encode, largest_change

_FINE = Tables(*([max(divisor // 6, 1) for divisor in table] for table in STANDARD))


def _images(points: int, shape: tuple[int, int, int], coarse: int | None) -> Tensor:
    """Draw images of 8 bits: noise, or smooth ones from so many values a side."""
    generator = torch.Generator().manual_seed(0)
    if coarse is None:
        images = torch.rand(points, *shape, generator=generator, dtype=torch.float64)
    else:
        drawn = torch.rand(points, shape[0], coarse, coarse, generator=generator, dtype=torch.float64)
        images = F.interpolate(drawn, size=shape[1:], mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def _pillow(image: Tensor, tables: Tables) -> Tensor:
    """Save as JPEG and read again, in grey levels."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    colour = pixels.shape[2] == 3
    file = io.BytesIO()
    settings = {"qtables": [list(table) for table in tables], "subsampling": 2} if colour else {}
    settings = settings or {"qtables": [list(tables.luminance)]}
    Image.fromarray(pixels if colour else pixels[..., 0]).save(file, "JPEG", **settings)
    read = torch.from_numpy(np.array(Image.open(file))).double()
    return read.permute(2, 0, 1) if colour else read[None]


@pytest.mark.parametrize("tables", [STANDARD, _FINE])
@pytest.mark.parametrize("coarse", [None, 5])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (1, 30, 41), (3, 45, 37), (3, 9, 70)])
def test_codec_gives_the_images_of_pillow(shape: tuple[int, int, int], coarse: int | None, tables: Tables) -> None:
    images = _images(12, shape, coarse)
    theirs = torch.stack([_pillow(image, tables) for image in images])
    ours = 255 * compress(images, tables)
    torch.testing.assert_close(ours, theirs, atol=1 + 1e-6, rtol=0)
    if shape[0] == 1:
        torch.testing.assert_close(ours, theirs)
    # Without rounding in the decoder, as the attack sees it; libjpeg rounds three times.
    smooth = 255 * decode(encode(images, tables), tables, shape[1:])
    torch.testing.assert_close(smooth, theirs, atol=3, rtol=0)
    assert (smooth - theirs).abs().gt(2).float().mean() < 0.003


def test_codec_of_float32_is_that_of_float64_but_for_rare_roundings() -> None:
    images = _images(30, (3, 32, 32), 5)
    single, double = compress(images.float()), compress(images)
    assert ((single - double).abs() > 1e-3).flatten(1).any(1).float().mean() < 0.1


def test_coefficients_are_integers_and_gradients_flow_through_their_rounding() -> None:
    images = _images(2, (3, 20, 24), 5).requires_grad_()
    planes = encode(images)
    assert [tuple(plane.shape) for plane in planes] == [(2, 1, 4, 4, 8, 8), (2, 2, 2, 2, 8, 8)]
    assert all(torch.equal(plane, plane.round()) for plane in planes)
    # The derivative of rounding is one: a uniformly brighter image has brighter pixels.
    (slope,) = torch.autograd.grad(compress(images).sum(), images)
    assert slope.sum() > 0.5 * images.numel()


def test_other_numbers_of_channels_are_grey_images_each_by_itself() -> None:
    images = _images(2, (4, 10, 17), 4)
    alone = torch.cat([compress(images[:, [channel]]) for channel in range(4)], 1)
    assert torch.equal(compress(images), alone)


@pytest.mark.parametrize("shape", [(1, 9, 8), (3, 20, 33), (2, 8, 8)])
def test_planes_are_joined_and_split_again(shape: tuple[int, int, int]) -> None:
    planes = encode(_images(3, shape, 4))
    again = split_planes(join_planes(planes), shape)
    assert all(torch.equal(one, other) for one, other in zip(planes, again, strict=True))


class _Sure(nn.Module):
    """Has class 0 for everything, and a gradient in every pixel."""

    def forward(self, images: Tensor) -> Tensor:
        weights = torch.linspace(-20, 20, images[0].numel(), dtype=images.dtype).cos()
        total = images.flatten(1) @ weights / 10
        return torch.stack([total * 0 + 9, total], 1)


def test_changes_stay_within_eps_and_are_added_to_the_rounded_coefficients() -> None:
    images, eps = _images(3, (3, 20, 20), 4), 0.4
    labels = torch.zeros(3, dtype=torch.int64)
    attack = Returning(jpeg.steps(_Sure(), images, labels, JpegThreat(eps), steps=20, compat=True))
    states = [{name: tensor.clone() for name, tensor in state().items()} for state in attack]
    changes = states[-1]["parameters"]
    assert changes.abs().max() <= eps
    # On a linear model every change that matters ends at an end of its range.
    assert (changes.abs() == eps).float().mean() > 0.5
    planes = split_planes(join_planes(encode(images)) + changes, (3, 20, 20))
    assert torch.equal(attack.value.adversarial, decode(planes, STANDARD, (20, 20)))
    threat = JpegThreat(eps)
    assert threat.contains(images, attack.value.adversarial).all()
    assert not JpegThreat(eps / 100).contains(images, attack.value.adversarial).any()


def test_compat_sees_the_start_multiplied_by_eps_once_too_often() -> None:
    images, eps = _images(2, (1, 16, 16), 4), 0.25
    labels = torch.zeros(2, dtype=torch.int64)
    default, compat = (jpeg(_Sure(), images, labels, JpegThreat(eps), steps=0, compat=on) for on in (False, True))
    unchanged = decode(encode(images), STANDARD, (16, 16))
    near = (unchanged > 0.1) & (unchanged < 0.9)  # no pixel is clamped there
    torch.testing.assert_close((compat.adversarial - unchanged)[near], eps * (default.adversarial - unchanged)[near])


def test_no_change_moves_a_pixel_further_than_the_bound() -> None:
    for channels in (1, 3):
        middle = torch.full((1, channels, 16, 16), 0.5, dtype=torch.float64).requires_grad_()
        coefficients = join_planes(encode(middle)).detach().requires_grad_()
        image = decode(split_planes(coefficients, (channels, 16, 16)), STANDARD, (16, 16))
        furthest = max(
            float(torch.autograd.grad(pixel, coefficients, retain_graph=True)[0].abs().sum())
            for pixel in image[0, :, :8, :8].flatten()[::5]
        )
        bound = largest_change(channels == 3)
        assert 0.5 * bound < furthest <= bound
