"""Fog against a diamond-square map drawn point by point, and its known answers."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Returning
from core.threats.diamond_square import diamond_square
from core.threats.fog import FogThreat, fog, lay_fog, map_side


def _slow_map(offsets: list[float], side: int, shift: int) -> list[list[float]]:
    """Draw a map as Fournier et al. describe it, on a torus of `side` points, one point at a time."""
    field = [[0.0] * side for _ in range(side)]
    amplitude, step = 100.0, side
    offsets = list(offsets)
    while step > 1:
        half, places = step // 2, range(0, side, step)
        sites = [(row, column) for row in places for column in places]
        noise = [[(2 * offsets.pop(0) - 1) * amplitude for _ in sites] for _ in range(3)]

        def at(row: int, column: int) -> float:
            return field[row % side][column % side]

        for (row, column), offset in zip(sites, noise[0], strict=True):
            corners = at(row, column) + at(row, column + step) + at(row + step, column) + at(row + step, column + step)
            field[row + half][column + half] = corners / 4 + offset
        for (row, column), offset in zip(sites, noise[1], strict=True):
            ends = at(row, column) + at(row, column + step)
            field[row][column + half] = (
                ends + at(row - half, column + half) + at(row + half, column + half)
            ) / 4 + offset
        for (row, column), offset in zip(sites, noise[2], strict=True):
            ends = at(row, column) + at(row + step, column)
            left = column + half - shift * step
            field[row + half][column] = (ends + at(row + half, left) + at(row + half, column + half)) / 4 + offset
        amplitude, step = amplitude / 2, half
    return field


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("side", [2, 4, 16])
def test_map_is_that_of_a_slow_diamond_square(side: int, shift: int) -> None:
    offsets = torch.rand(2, side**2 - 1, generator=torch.Generator().manual_seed(side), dtype=torch.float64)
    expected = torch.tensor([_slow_map(row.tolist(), side, shift) for row in offsets], dtype=torch.float64)
    found = diamond_square(offsets, side, amplitude=100, falloff=2, shift=shift)
    torch.testing.assert_close(found, expected)
    unshifted = diamond_square(offsets, side, amplitude=100, falloff=2)
    assert torch.equal(unshifted[:, 0, 0], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "side"), [((2, 2), 4), ((8, 8), 16), ((31, 9), 32), ((32, 32), 64), ((33, 20), 64), ((224, 224), 256)]
)
def test_map_is_the_next_power_of_two_above_the_longer_side(size: tuple[int, int], side: int) -> None:
    assert map_side(size) == side


def test_density_zero_is_the_identity() -> None:
    images = torch.rand(3, 3, 8, 9)
    images[0, 1] = 0
    assert torch.equal(lay_fog(images, torch.rand(3, 1, 8, 9), 0.0), images)


def test_fog_is_laid_by_its_formula() -> None:
    images = torch.tensor([[0.2, 0.8], [0.0, 0.4]]).view(1, 1, 2, 2)
    field = torch.tensor([[0.0, 1.0], [0.5, 0.25]]).view(1, 1, 2, 2)
    expected = torch.tensor([[0.2, 1.3], [0.25, 0.525]]) * 0.8 / 1.3
    torch.testing.assert_close(lay_fog(images, field, 0.5)[0, 0], expected)
    compat = lay_fog(images, field, 0.5, brightest=1.0)
    torch.testing.assert_close(compat[0, 0], torch.tensor([[0.2, 1.3], [0.25, 0.525]]) / 1.3)


class _Sure(nn.Module):
    """Has class 0 for everything."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.mean((1, 2, 3))
        return torch.stack([total + 9, total**2], 1)


def test_compat_scales_maps_over_the_batch_and_the_default_each_by_itself() -> None:
    images = torch.full((4, 1, 8, 8), 0.5)
    # A map depends on the pixels through its random numbers.
    images += torch.linspace(0, 0.01, 4).view(4, 1, 1, 1)
    labels = torch.zeros(4, dtype=torch.int64)
    threat, density = FogThreat(255), 1.0
    fogs = {}
    for compat in (False, True):
        found = fog(_Sure(), images, labels, threat, steps=0, compat=compat).adversarial
        alone = fog(_Sure(), images[:1], labels[:1], threat, steps=0, compat=compat).adversarial
        scale = 1.0 if compat else images
        fogs[compat] = found / scale * (images + density) - images
        assert torch.allclose(found[:1], alone) is not compat
    assert all(field.min() >= 0 and field.max() <= density + 1e-5 for field in fogs.values())


def test_offsets_move_by_a_share_of_their_range_and_in_compat_from_end_to_end() -> None:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    offsets = {}
    for compat in (False, True):
        attack = Returning(
            fog.steps(_Sure(), images, 0 * images[:, 0, 0, 0].long(), FogThreat(128), steps=25, compat=compat)
        )
        offsets[compat] = [state()["parameters"].clone() for state in attack]
    first, second, *_ = offsets[False]
    torch.testing.assert_close((second - first).abs().max(), torch.tensor(0.5 / 5))
    first, second, *_ = offsets[True]
    moved = second[first != second]
    # Offsets beyond the cropped map have no slope, and stay.
    assert len(moved) > 10
    assert ((moved == 0) | (moved == 1)).all()
    assert all(of.min() >= 0 and of.max() <= 1 for of in offsets[False] + offsets[True])


def test_contains_rejects_what_no_fog_explains() -> None:
    images, threat = torch.rand(3, 1, 8, 8) * 0.8 + 0.1, FogThreat(50)
    fogged = lay_fog(images, torch.rand(3, 1, 8, 8), 50 / 255)
    assert threat.contains(images, fogged).all()
    fogged[0, 0, 2, 2] = 0.0
    fogged[1, 0, 2, 2] = 1.1
    assert threat.contains(images, fogged).tolist() == [False, False, True]
