"""Pillow's resizing with its box filter, to the same bytes, for many images at once."""

import math

import torch
from torch import Tensor

# Pillow computes with whole numbers; these are the bits behind the point of its weights.
_BITS = 22


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize pixels (..., height, width), whole numbers from 0 to 255 as float64."""
    pixels = _rounded(pixels @ _weights(pixels.shape[-1], width).to(pixels).T)
    return _rounded(_weights(pixels.shape[-2], height).to(pixels) @ pixels)


def _rounded(sums: Tensor) -> Tensor:
    # A float64 holds these sums exactly, in whatever order they are added.
    return ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255)


def _weights(size: int, new_size: int) -> Tensor:
    """Give the weight of each pixel (new size, size) in each of the new ones, as a whole number."""
    scale = size / new_size
    half = 0.5 * max(scale, 1)
    weights = torch.zeros(new_size, size)
    for new in range(new_size):
        middle = (new + 0.5) * scale
        first, last = max(int(middle - half + 0.5), 0), min(int(middle + half + 0.5), size)
        inside = [pixel for pixel in range(first, last) if -0.5 < (pixel - middle + 0.5) / max(scale, 1) <= 0.5]
        weights[new, inside] = math.floor(2**_BITS / len(inside) + 0.5)
    return weights
