"""Noise has the tabulated means and deviations."""

import math

import pytest
import torch
from torch import Tensor

from core.schema.threats import SEVERITIES
from core.threats.corruptions import noise
from core.threats.corruptions.severities import arguments_of
from core.threats.random_numbers import PointNumbers

_SHAPES = [(3, 48, 48), (3, 64, 64)]
"""One for each table of severities."""


def _flat(level: float, shape: tuple[int, ...]) -> Tensor:
    return torch.full((1, *shape), float(level))


def _expected(values: Tensor, variance: float) -> float:
    """Four deviations of the mean of so many values."""
    return 4 * math.sqrt(variance / values.numel())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("shape", "table"), [(_SHAPES[0], [4, 6, 8, 9, 10]), (_SHAPES[1], [8, 12, 18, 26, 38])])
def test_gaussian_noise_has_the_tabulated_deviation(shape: tuple[int, ...], table: list[int], severity: int) -> None:
    grey = _flat(0.5, shape)
    added = noise.gaussian_noise(grey, PointNumbers(1, grey), **arguments_of("gaussian_noise", severity, shape)) - grey
    deviation = table[severity - 1] / 100
    assert added.std() == pytest.approx(deviation, rel=0.03)
    assert abs(added.mean()) < _expected(added, deviation**2)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_speckle_noise_is_proportional_to_the_value(shape: tuple[int, ...], severity: int) -> None:
    arguments = arguments_of("speckle_noise", severity, shape)
    for level in (0.25, 0.5):
        grey = _flat(level, shape)
        added = noise.speckle_noise(grey, PointNumbers(1, grey), **arguments) - grey
        assert added.std() == pytest.approx(level * arguments["deviation"], rel=0.03)
    black = _flat(0, shape)
    assert torch.equal(noise.speckle_noise(black, PointNumbers(1, black), **arguments), black)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_impulse_noise_sets_as_many_values_to_0_as_to_1(shape: tuple[int, ...], severity: int) -> None:
    grey, arguments = _flat(0.5, shape), arguments_of("impulse_noise", severity, shape)
    noisy = noise.impulse_noise(grey, PointNumbers(1, grey), **arguments)
    for extreme in (0, 1):
        share = arguments["amount"] / 2
        found = (noisy == extreme).double().mean()
        assert abs(found - share) < _expected(noisy, share)
    assert set(noisy.unique().tolist()) == {0, 0.5, 1}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_shot_noise_keeps_the_mean_and_its_variance_is_the_mean(shape: tuple[int, ...], severity: int) -> None:
    arguments = arguments_of("shot_noise", severity, shape)
    for level in (0.1, 0.5, 1):
        grey = _flat(level, shape)
        noisy = noise.shot_noise(grey, PointNumbers(1, grey), **arguments)
        variance = level / arguments["rate"]
        assert abs(noisy.mean() - level) < _expected(noisy, variance)
        assert noisy.var() == pytest.approx(variance, rel=0.07)
        photons = noisy * arguments["rate"]
        assert torch.allclose(photons, photons.round(), atol=1e-3)
    black = _flat(0, shape)
    assert torch.equal(noise.shot_noise(black, PointNumbers(1, black), **arguments), black)


@pytest.mark.parametrize("entries", [noise._TABLE_ENTRIES, 500])
def test_a_poisson_number_inverts_the_distribution_function(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_TABLE_ENTRIES", entries)
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(7, 40, generator=generator, dtype=torch.float64) * 30
    rates[0, :10] = 0
    uniform = torch.rand(7, 40, generator=generator)
    uniform[1, 0], uniform[1, 1] = 0, 1 - 2**-24

    def inverse(rate: float, number: float) -> int:
        count, probability = 0, math.exp(-rate)
        below = probability
        while below <= number:
            count += 1
            probability *= rate / count
            below += probability
        return count

    expected = [inverse(*pair) for pair in zip(rates.flatten().tolist(), uniform.flatten().tolist(), strict=True)]
    assert noise._poisson(rates, uniform).flatten().tolist() == expected
