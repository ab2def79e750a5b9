"""Radii that are proposed for images outside the catalogue."""

from math import sqrt

import pytest

from core.schema.catalog import DATASETS
from core.schema.fraction import read_fraction
from core.schema.radius import find_uncovered_l2, largest_radius, propose_radii


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_for_images_of_the_papers_their_radii_are_proposed(name: str) -> None:
    entry = DATASETS[name]
    found = propose_radii(entry.shape).eps
    assert {norm: read_fraction(str(radius)) for norm, radius in found.items()} == pytest.approx(entry.eps)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32, 64, 96, 128, 159, 160, 224, 299, 512, 1024])
def test_linf_and_l1_cover_l2_at_every_size_and_all_are_below_the_largest(side: int, channels: int) -> None:
    proposed = propose_radii((channels, side, side))
    eps = {norm: read_fraction(str(radius)) for norm, radius in proposed.eps.items()}
    assert find_uncovered_l2(("linf", "l1"), eps) is None
    assert eps["linf"] == pytest.approx((4 if side >= 160 else 8) / 255)
    assert all(radius < (largest_radius(norm, (channels, side, side)) or 0) for norm, radius in eps.items())
    assert f"{sqrt(eps['l1'] * eps['linf']):.3g}" in proposed.say()
