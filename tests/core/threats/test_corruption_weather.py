"""Snow, frost, fog, brightness and spatter against closed forms."""

import colorsys

import pytest
import torch
from torch import Tensor

from core.schema.threats import SEVERITIES
from core.threats.corruptions import corrupt, spatter, weather
from core.threats.corruptions.plasma import plasma
from core.threats.corruptions.severities import arguments_of
from core.threats.random_numbers import PointNumbers


def _random(shape: tuple[int, ...], images: int = 2) -> Tensor:
    return torch.rand(images, *shape, generator=torch.Generator().manual_seed(1))


def test_brightness_adds_to_the_value_of_hsv() -> None:
    images = _random((3, 6, 7))
    images[0, :, 0, 0], images[0, :, 0, 1], images[0, :, 0, 2] = 0, 0.4, 1
    for severity, amount in zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True):
        brighter = corrupt(images, "brightness", severity, seed=0).permute(0, 2, 3, 1).reshape(-1, 3)
        for before, after in zip(images.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), brighter.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + amount)), abs=1e-5)


def test_brightness_of_a_grey_image_is_a_sum() -> None:
    images = _random((1, 8, 8))
    assert torch.allclose(corrupt(images, "brightness", 5, seed=0), (images + 0.3).clamp(max=1), atol=1e-6)


def test_plasma_fills_a_map_from_the_means_of_neighbours() -> None:
    images = _random((1, 2, 2), 5)
    numbers, decay = PointNumbers(3, images), 1.7
    noise = (numbers.uniform(0, 16) * 2 - 1).reshape(-1, 4, 4).double()
    maps = torch.zeros(5, 4, 4).double()
    maps[:, 2, 2] = noise[:, 2, 2]
    for row, column in ((0, 2), (2, 0)):
        maps[:, row, column] = noise[:, row, column] + maps[:, 2, 2] / 2
    # The map goes around: the neighbours of the second level.
    even = maps[:, ::2, ::2].clone()
    around = torch.cat([even, even[:, :, :1]], 2)
    around = torch.cat([around, around[:, :1]], 1)
    amplitude = decay**-2
    for row in range(2):
        for column in range(2):
            middle = around[:, row : row + 2, column : column + 2].mean((1, 2))
            maps[:, 2 * row + 1, 2 * column + 1] = amplitude * noise[:, 2 * row + 1, 2 * column + 1] + middle
    for row in range(4):
        for column in range(4):
            if (row + column) % 2:
                neighbours = [((row + 1) % 4, column), (row - 1, column), (row, (column + 1) % 4), (row, column - 1)]
                mean = torch.stack([maps[:, at[0], at[1]] for at in neighbours]).mean(0)
                maps[:, row, column] = amplitude * noise[:, row, column] + mean
    maps -= maps.amin((1, 2), keepdim=True)
    maps /= maps.amax((1, 2), keepdim=True)
    assert torch.allclose(plasma(numbers, 0, 4, 4, decay=decay).double(), maps, atol=1e-5)
    assert torch.equal(plasma(numbers, 0, 3, 4, decay=decay), plasma(numbers, 0, 4, 4, decay=decay)[:, :3])


def test_fog_of_density_zero_is_the_identity() -> None:
    images = _random((3, 20, 24))
    assert torch.allclose(weather.fog(images, PointNumbers(0, images), amount=0, decay=2), images, atol=1e-6)


def test_fog_keeps_the_brightest_value_possible() -> None:
    images = _random((3, 32, 32)) * 0.6
    for severity in SEVERITIES:
        foggy = corrupt(images, "fog", severity, seed=0)
        assert (foggy.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-6).all()
    # Fog is the same on all channels.
    amount = 1.5
    maps = plasma(PointNumbers(0, images), 0, 32, 32, decay=1.75)[:, None]
    brightest = images.amax((1, 2, 3), keepdim=True)
    assert torch.allclose(foggy, (images + amount * maps) * brightest / (brightest + amount), atol=1e-6)


def test_snow_without_flakes_whitens() -> None:
    images = _random((3, 16, 16))
    numbers = PointNumbers(0, images)
    settings = {"mean": 0.0, "deviation": 0.1, "zoom": 1, "threshold": 2, "radius": 8, "sigma": 3}
    assert torch.allclose(weather.snow(images, numbers, **settings, keep=1), images)
    grey = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    whitened = 0.8 * images + 0.2 * torch.maximum(images, 1.5 * grey + 0.5)
    assert torch.allclose(weather.snow(images, numbers, **settings, keep=0.8), whitened, atol=1e-6)


def test_flakes_are_the_same_turned_by_half_and_on_all_channels() -> None:
    black = torch.zeros(1, 3, 32, 20)
    settings = arguments_of("snow", 3, (3, 32, 20)) | {"keep": 1}
    flakes = weather.snow(black, PointNumbers(0, black), **settings)
    assert flakes.max() > 0.1
    assert torch.allclose(flakes, flakes.rot90(2, (2, 3)))
    assert torch.equal(flakes[:, :1].expand_as(flakes), flakes)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 70, 64)])
def test_frost_is_the_image_and_a_texture_of_known_mean_and_deviation(shape: tuple[int, ...]) -> None:
    images = _random(shape, 30)
    settings = arguments_of("frost", 1, shape)
    numbers = PointNumbers(0, images)
    texture = weather.frost(images, numbers, **settings | {"keep": 0, "amount": 1})
    means = texture.mean((1, 2, 3))
    assert means.min() > 0.4
    assert means.max() < 0.84
    assert means.std() > 0.05
    assert texture.std((2, 3)).mean() == pytest.approx(settings["contrast"], rel=0.1)
    frosted = weather.frost(images, numbers, **settings | {"keep": 0.75, "amount": 0.45})
    assert torch.allclose(frosted, 0.75 * images + 0.45 * texture, atol=1e-6)


@pytest.mark.parametrize("mud", [False, True])
def test_no_drops_leave_the_image_as_it_is(mud: bool) -> None:
    images = _random((3, 32, 32))
    settings = {"mean": 0.6, "deviation": 0.1, "sigma": 1, "threshold": 2, "amount": 0.6, "mud": mud}
    assert torch.equal(spatter.spatter(images, PointNumbers(0, images), **settings), images)


def test_mud_is_brown_where_it_covers_and_nowhere_else() -> None:
    images = _random((3, 32, 32))
    muddy = corrupt(images, "spatter", 5, seed=0)
    changed = (muddy != images).any(1, keepdim=True)
    brown = torch.tensor([63, 42, 20])[:, None, None] / 255
    # Mud covers at least four fifths of what it touches.
    assert ((muddy - brown).abs() <= 0.2 * (images - brown).abs() + 1e-6).logical_or(~changed).all()
    assert 0.01 < changed.double().mean() < 0.3


def test_water_adds_pale_turquoise_up_to_its_strength() -> None:
    black = torch.zeros(1, 3, 32, 32)
    wet = corrupt(black, "spatter", 2, seed=0)
    assert torch.allclose(wet.amax((2, 3)), 0.5 * torch.tensor([[175, 238, 238]]) / 255)
    assert torch.allclose(wet[:, 0] * 238, wet[:, 1] * 175, atol=1e-4)
    assert 0 < (wet > 0).double().mean() < 0.3


def test_distances_to_edges_are_lengths_of_steps() -> None:
    edges = torch.zeros(1, 9, 9, dtype=torch.bool)
    edges[0, 4, 4] = True
    distance = spatter._distance_to(edges)[0]
    assert distance[4, 8] == 4
    assert distance[0, 0] == pytest.approx(4 * 2**0.5)
    assert distance[4, 4] == 0


def test_a_histogram_is_equalised_per_image() -> None:
    values = torch.tensor([[[0.0, 0, 3, 9]], [[7, 7, 7, 7]]])
    assert spatter._equalise(values).tolist() == [[[0, 0, 128, 255]], [[7, 7, 7, 7]]]
