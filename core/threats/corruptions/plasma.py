"""Plasma: random fractal maps by the diamond-square algorithm (Fournier et al. 1982), for fog and frost."""

from torch import Tensor

from core.threats.random_numbers import PointNumbers


def plasma(numbers: PointNumbers, step: int, height: int, width: int, *, decay: float) -> Tensor:
    """Make a map (points, height, width) in [0, 1] for each point: the upper left of a square map with both extremes.

    The side of the square is a power of two, and its borders fit together. Each level of detail is `decay` squared
    times weaker than the one before.
    """
    size = max(2, 1 << (max(height, width) - 1).bit_length())
    maps = numbers.uniform(step, size * size).reshape(-1, size, size) * 2 - 1
    maps[:, 0, 0] = 0
    spacing, amplitude = size, 1.0
    while spacing >= 2:
        half = spacing // 2
        every, between = slice(0, None, spacing), slice(half, None, spacing)
        corners = maps[:, every, every]
        pairs = corners + corners.roll(-1, 1)
        # Where the mean of its neighbours comes, the map still holds the point's random number.
        middles = amplitude * maps[:, between, between] + (pairs + pairs.roll(-1, 2)) / 4
        maps[:, between, between] = middles
        across = corners + corners.roll(-1, 2) + middles + middles.roll(1, 1)
        along = corners + corners.roll(-1, 1) + middles + middles.roll(1, 2)
        maps[:, every, between] = amplitude * maps[:, every, between] + across / 4
        maps[:, between, every] = amplitude * maps[:, between, every] + along / 4
        spacing, amplitude = half, amplitude / decay**2
    maps = maps - maps.amin((1, 2), keepdim=True)
    return (maps / maps.amax((1, 2), keepdim=True))[:, :height, :width]
