"""Values of images between their pixels."""

from typing import Literal

import torch
from torch import Tensor

Mirror = Literal["pixel", "edge"]
"""Where an image is mirrored at its border: at the middle of the border pixels, or at their outer edge."""


def sample(images: Tensor, rows: Tensor, columns: Tensor, *, mirror: Mirror) -> Tensor:
    """Interpolate images (points, channels, height, width) at positions of each point's own.

    rows, columns (points, height, width): in pixels from the middle of the first one; they may lie outside.
    """
    height, width = images.shape[2:]
    top, bottom, down = _split(rows, height, mirror)
    left, right, across = _split(columns, width, mirror)
    flat = images.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None]
        return flat.gather(2, index.expand(-1, images.shape[1], -1)).reshape(images.shape)

    down, across = down[:, None].to(images.dtype), across[:, None].to(images.dtype)
    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return upper * (1 - down) + lower * down


def _split(positions: Tensor, size: int, mirror: Mirror) -> tuple[Tensor, Tensor, Tensor]:
    """Give the pixels before and behind each position, and the weight of the latter."""
    if mirror == "pixel":
        period = 2 * (size - 1)
        positions = positions.remainder(period)
        positions = torch.minimum(positions, period - positions)
    else:
        positions = (positions + 0.5).remainder(2 * size)
        positions = (torch.minimum(positions, 2 * size - positions) - 0.5).clamp(0, size - 1)
    before = positions.floor().long().clamp(max=size - 1)
    return before, (before + 1).clamp(max=size - 1), positions - before
