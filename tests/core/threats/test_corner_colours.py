"""Corner colours: which are drawn, and how often."""

import itertools

import pytest
import torch

from core.threats.corner_colours import corners, number_of, other_corners


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_another_corner_differs_and_each_other_one_is_as_likely(channels: int) -> None:
    draws = torch.rand(7000, channels, generator=torch.Generator().manual_seed(0))
    for present in itertools.product([0.0, 1.0], repeat=channels):
        drawn = other_corners(torch.tensor(present).expand(7000, -1), draws)
        counts = number_of(drawn).bincount(minlength=2**channels)
        assert counts[number_of(torch.tensor([present]))] == 0
        expected = 7000 / (2**channels - 1)
        assert ((counts - expected).abs() < 5 * expected**0.5).sum() == 2**channels - 1


def test_next_to_a_colour_that_is_no_corner_every_corner_is_as_likely() -> None:
    draws = torch.rand(8000, 3, generator=torch.Generator().manual_seed(0))
    drawn = other_corners(torch.tensor([[1.0, 0.3, 0.0]], dtype=torch.float64).expand(8000, -1), draws)
    assert drawn.dtype == torch.float64
    assert drawn.unique().tolist() == [0, 1]
    assert ((number_of(drawn).bincount(minlength=8) - 1000).abs() < 150).all()


def test_corners_have_numbers_of_their_own() -> None:
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    assert number_of(every).sort().values.tolist() == list(range(16))
    drawn = corners(torch.rand(100, 4, generator=torch.Generator().manual_seed(0)), every)
    assert drawn.unique().tolist() == [0, 1]
