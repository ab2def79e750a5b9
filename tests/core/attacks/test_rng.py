"""Random numbers per logical batch."""

import pytest
import torch

from core.attacks.rng import Noise


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_each_point_gets_the_numbers_of_its_batch_alone(draw: str) -> None:
    together = Noise(7, [3, 2, 3])
    standing = [torch.arange(8), torch.tensor([1, 2, 5, 7]), torch.tensor([1, 5, 7])]
    drawn = [getattr(together, draw)(places, (2, 2)) for places in standing]
    for first, last in ((0, 3), (3, 5), (5, 8)):
        alone = torch.Generator().manual_seed(7)
        for places, numbers in zip(standing, drawn, strict=True):
            mine = (places >= first) & (places < last)
            if mine.any():
                function = torch.randn if draw == "normal" else torch.rand
                expected = function(int(mine.sum()), 2, 2, generator=alone)
                assert torch.equal(numbers[mine], expected)


def test_shared_numbers_are_the_same_for_a_whole_batch() -> None:
    noise = Noise(1, [2, 3])
    numbers, _ = noise.shared_and_own(noise.counts(torch.tensor([0, 1, 3])), 4, 0)
    assert torch.equal(numbers[0], numbers[1])
    assert torch.equal(numbers[0], torch.rand(4, generator=torch.Generator().manual_seed(1)))
