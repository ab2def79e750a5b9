"""Gaussian smoothing by matrices, for any width and border: of images for blurs, of random fields for displacements."""

from typing import Literal

import torch
from torch import Tensor

Border = Literal["nearest", "mirror"]
"""What lies outside an image: its border pixels, or its mirror image with the border pixels doubled."""


def smooth(images: Tensor, sigma: float, *, reach: float = 4, border: Border = "nearest") -> Tensor:
    """Smooth images (..., height, width) with a Gaussian of `sigma` pixels, cut off after `reach` sigmas.

    Computed and returned in float64, so that rounding, which depends on the batch, does not show.
    """
    height, width = (_matrix(size, sigma, reach, border, images) for size in images.shape[-2:])
    return height @ images.double() @ width.T


def _matrix(size: int, sigma: float, reach: float, border: Border, like: Tensor) -> Tensor:
    """Give the matrix (size, size) that smooths along a side."""
    radius = int(reach * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = (-0.5 * (offsets.double() / sigma) ** 2).exp() if radius else torch.ones(1, device=like.device).double()
    taken = torch.arange(size, device=like.device)[:, None] + offsets
    if border == "nearest":
        taken = taken.clamp(0, size - 1)
    else:
        taken = taken.remainder(2 * size)
        taken = torch.minimum(taken, 2 * size - 1 - taken)
    matrix = torch.zeros(size, size, device=like.device, dtype=torch.float64)
    return matrix.scatter_add(1, taken, (weights / weights.sum()).expand(taken.shape))
