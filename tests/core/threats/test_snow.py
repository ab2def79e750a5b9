"""Snow: its limit, its streaks, and what the image under it looks like."""

import pytest
import torch
from torch import Tensor, nn

from core.threats.random_numbers import PointNumbers
from core.threats.snow import SnowThreat, draw_streaks, limit_snow, pale, snow, snow_field


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (10, 19)])
def test_mean_of_each_block_of_a_layer_respects_the_limit(size: tuple[int, int]) -> None:
    flakes = torch.randn(3, 7, *size, generator=torch.Generator().manual_seed(0)) + 0.3
    flakes[1] *= 0.1
    limited = limit_snow(flakes)
    for top in range(0, size[0], 8):
        for left in range(0, size[1], 8):
            means, free = (
                of[:, :, top : top + 8, left : left + 8].mean((2, 3)) for of in (limited, flakes.clamp(1e-9, 1))
            )
            torch.testing.assert_close(means, free.clamp(max=0.2))
    assert limited.min() > 0
    assert limited.max() <= 1
    torch.testing.assert_close(limit_snow(limited), limited)


def test_a_streak_is_a_blurred_line_in_a_window_of_13() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    streaks = draw_streaks(PointNumbers(0, images))
    assert streaks.shape == (6, 7, 16, 16)
    # A line of brightness 1 from -6 to 6 pixels, read at pixels: its blur sums to 1 within 7 % beside the line.
    total = streaks.sum((2, 3))
    assert ((total > 10.5) & (total < 13)).all()
    for line in (2, 3):
        inside = (streaks > 0).any(line)
        extent = inside.int().sum(2)
        assert (extent <= 13).all()
    # The brightest place is that of an endless line: 1 / (deviation * sqrt(2 pi)).
    assert (streaks.amax((2, 3)) <= 1 / (0.41 * (2 * torch.pi) ** 0.5) + 1e-6).all()
    assert (streaks.amax((2, 3)) > 0.5).all()


@pytest.mark.parametrize("size", [(2, 2), (3, 5)])
def test_snow_is_the_sum_of_the_flakes_streaks(size: tuple[int, int]) -> None:
    rows, columns = size
    generator = torch.Generator().manual_seed(0)
    flakes, streaks = (
        torch.rand(2, 7, rows, columns, generator=generator),
        torch.rand(2, 7, 16, 16, generator=generator),
    )
    expected = torch.zeros(2, 1, 4 * rows + 12, 4 * columns + 12)
    for row in range(rows):
        for column in range(columns):
            drawn = (flakes[:, :, row, column, None, None] ** 4 * streaks).sum(1, keepdim=True)
            expected[:, :, 4 * row : 4 * row + 16, 4 * column : 4 * column + 16] += drawn
    torch.testing.assert_close(snow_field(flakes, streaks), expected[:, :, 6:-6, 6:-6])


def test_the_image_under_the_snow_is_paler() -> None:
    colours = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    grey = 0.2126 * 0.2 + 0.7152 * 0.4 + 0.0722 * 0.6
    expected = 0.75 * colours + 0.25 * torch.maximum(colours, torch.tensor(1.5 * grey + 0.5))
    torch.testing.assert_close(pale(colours), expected)
    torch.testing.assert_close(pale(colours[:, :1]), 0.75 * colours[:, :1] + 0.25 * (1.5 * colours[:, :1] + 0.5))


class _Sure(nn.Module):
    """Has class 0 for everything."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.mean((1, 2, 3))
        return torch.stack([total + 9, total**2], 1)


def test_compat_shares_streaks_in_the_batch_and_the_default_does_not() -> None:
    images = torch.linspace(0, 0.1, 3).view(3, 1, 1, 1).expand(3, 1, 30, 41).contiguous()
    numbers = PointNumbers(0, images)
    own, shared = draw_streaks(numbers), draw_streaks(numbers.shared(None))
    assert not torch.allclose(own[0], own[1])
    assert torch.equal(shared[0], shared[1])
    labels, threat = torch.zeros(3, dtype=torch.int64), SnowThreat(0.5)
    for compat in (False, True):
        whole = snow(_Sure(), images, labels, threat, steps=2, compat=compat).adversarial
        alone = snow(_Sure(), images[:1], labels[:1], threat, steps=2, compat=compat).adversarial
        assert torch.allclose(whole[:1], alone, atol=1e-5) is not compat


def test_sizes_that_4_does_not_divide_are_snowed_on_to_the_last_pixel() -> None:
    images = torch.rand(3, 1, 30, 41, generator=torch.Generator().manual_seed(0)) * 0.01
    found = snow(_Sure(), images, torch.zeros(3, dtype=torch.int64), SnowThreat(0.5), steps=0).adversarial
    fallen = found - pale(images)
    for edge in (fallen[..., -2:], fallen[..., -2:, :], fallen[..., :2], fallen[..., :2, :]):
        assert (edge.flatten(1).amax(1) > 0.01).all()


def test_contains_rejects_pixels_that_snow_would_darken() -> None:
    images, threat = torch.rand(2, 3, 8, 8), SnowThreat(0.5)
    snowed = (pale(images) + 0.1).clamp(0, 1)
    assert threat.contains(images, snowed).all()
    snowed[0, 0, 2, 2] = 0.0
    assert threat.contains(images, snowed).tolist() == [False, True]
