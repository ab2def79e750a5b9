"""Plasma: random fractal maps (`core.threats.diamond_square`), for fog and frost."""

import torch
from torch import Tensor

from core.threats.diamond_square import diamond_square
from core.threats.random_numbers import PointNumbers


def plasma(numbers: PointNumbers, step: int, height: int, width: int, *, decay: float) -> Tensor:
    """Make a map (points, height, width) in [0, 1] for each point: the upper left of a square map with both extremes.

    The side of the square is a power of two, and its borders fit together. Each level of detail is `decay` squared
    times weaker than the one before.
    """
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    drawn = numbers.uniform(step, side * side).view(-1, side, side)
    spacings = [side >> level for level in range(side.bit_length() - 1)]
    # Each place of the map has its number.
    offsets = torch.cat([_new_places(drawn, spacing) for spacing in spacings], 1)
    maps = diamond_square(offsets, side, amplitude=1.0, falloff=decay**2)
    maps = maps - maps.amin((1, 2), keepdim=True)
    return (maps / maps.amax((1, 2), keepdim=True))[:, :height, :width]


def _new_places(maps: Tensor, spacing: int) -> Tensor:
    """Give what stands at the places that a level adds to a grid of this spacing, (points, places): centres, then
    those beside grid points, then those below."""
    every, between = slice(0, None, spacing), slice(spacing // 2, None, spacing)
    parts = maps[:, between, between], maps[:, every, between], maps[:, between, every]
    return torch.cat([part.flatten(1) for part in parts], 1)
