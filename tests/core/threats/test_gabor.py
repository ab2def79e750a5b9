"""Gabor noise: its filter, its contrast, and which sites the attack may change."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Returning
from core.threats import gabor as module
from core.threats.gabor import GaborThreat, draw_filters, gabor, gabor_noise
from core.threats.random_numbers import PointNumbers


class _Sure(nn.Module):
    """Has class 0 for everything, and a gradient in every pixel."""

    def forward(self, images: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).cos()
        total = images.flatten(1) @ weights
        return torch.stack([total * 0 + 9, total.sin()], 1)


def _images(points: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(points, *shape, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.1


def test_filters_are_waves_in_a_window() -> None:
    filters = draw_filters(PointNumbers(0, _images(50, (1, 8, 8))))
    assert filters.shape == (50, 23, 23)
    torch.testing.assert_close(filters[:, 11, 11], torch.ones(50))
    torch.testing.assert_close(filters, filters.flip(1, 2))
    spectra = torch.fft.fft2(filters, (128, 128)).abs()
    frequencies = torch.fft.fftfreq(128)
    lengths = (frequencies[:, None] ** 2 + frequencies**2).sqrt()
    highest = spectra.flatten(1).argmax(1)
    # Wide windows of low frequency add up near the origin when there are many waves.
    found = 1 / lengths.flatten()[highest]
    assert ((found > 2.8) & (found < 7.5)).float().mean() > 0.8


@pytest.mark.parametrize("size", [(6, 7), (8, 8), (20, 41)])
def test_noise_reaches_from_zero_to_one(size: tuple[int, int]) -> None:
    images = _images(3, (1, *size)).double()
    filters = draw_filters(PointNumbers(1, images)).double()
    impulses = torch.randn(3, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = gabor_noise(impulses, filters)
    torch.testing.assert_close(noise.amin((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(noise.amax((1, 2, 3)), torch.ones(3, dtype=torch.float64))


def test_an_impulse_draws_the_filter_around_itself() -> None:
    filters = draw_filters(PointNumbers(0, _images(2, (1, 8, 8))))
    planes = torch.zeros(2, 9, 40)
    planes[0, 4, 20], planes[1, 0, 39] = 2, -1
    drawn = module._convolve(planes, filters)
    torch.testing.assert_close(drawn[0, :, 9:32], 2 * filters[0, 7:16])
    torch.testing.assert_close(drawn[1, :, 28:], -filters[1, 11:20, :12])


def test_weak_and_strong_impulses_make_noise_of_the_same_contrast() -> None:
    impulses = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(3))
    impulses[:, :, :, 48:] *= 0.1
    noise = gabor_noise(impulses, draw_filters(PointNumbers(0, _images(1, (1, 96, 96)))))
    left, right = noise[..., :30].std(), noise[..., -30:].std()
    assert 0.7 < right / left < 1.4


def test_no_impulses_make_no_noise_and_height_zero_is_the_identity() -> None:
    images = _images(2, (3, 8, 8))
    filters = draw_filters(PointNumbers(0, images))
    assert torch.equal(gabor_noise(torch.zeros(2, 1, 8, 8), filters), torch.zeros(2, 1, 8, 8))
    still = module._Gabor(0.0, filters, torch.ones(2, 1, 8, 8, dtype=torch.bool))
    assert torch.equal(still.apply(images, torch.randn(2, 1, 8, 8), first=True), images)


def _sites(images: Tensor, **settings: Any) -> list[Tensor]:
    """Attack, and give the sites with an impulse after each step."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    attack = Returning(gabor.steps(_Sure(), images, labels, GaborThreat(60), **settings))
    return [state()["parameters"] != 0 for state in attack]


def test_a_fourteenth_of_the_sites_has_impulses_and_they_stay_the_same() -> None:
    first, *others = _sites(_images(5, (3, 20, 15)), steps=3)
    assert (first.sum((1, 2, 3)) == round(300 / 14)).all()
    assert all(torch.equal(first, other) for other in others)


def test_compat_counts_sites_over_the_batch_and_zeroes_them_after_a_step() -> None:
    images = _images(5, (3, 20, 15))
    numbers = PointNumbers(0, images)
    ranks = numbers.uniform(0, 300).flatten()
    count = round(5 * 300 / 14)
    start = torch.zeros(1500, dtype=torch.bool).index_fill(0, ranks.topk(count).indices, True).view(5, 1, 20, 15)
    per_image = start.sum((1, 2, 3))
    assert len(set(per_image.tolist())) > 1
    first, *others = _sites(images, steps=3, compat=True)
    assert torch.equal(first, ~start)
    assert all(torch.equal(other, ~start) for other in others)


def test_noise_is_the_same_in_all_channels_and_brightens_by_at_most_eps() -> None:
    images = _images(4, (3, 16, 16))
    eps = 30
    found = gabor(_Sure(), images, torch.zeros(4, dtype=torch.int64), GaborThreat(eps), steps=4).adversarial
    noise = found - images
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), atol=1e-6, rtol=0)
    assert math.isclose(noise.max(), eps / 255, abs_tol=1e-6)
    assert GaborThreat(eps).contains(images, found).all()
    assert not GaborThreat(eps / 2).contains(images, found).any()
