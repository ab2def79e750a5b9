"""Corruptions of single pixel values: Gaussian, shot, impulse and speckle noise.

The functions take images (points, channels, height, width) in [0, 1]; the results may lie outside.
"""

import math

import torch
from torch import Tensor

from core.threats.random_numbers import PointNumbers

# Entries of the table of distribution functions, which bounds the memory.
_TABLE_ENTRIES = 2**21


def gaussian_noise(images: Tensor, numbers: PointNumbers, *, deviation: float) -> Tensor:
    """Add normal noise of a standard deviation."""
    return images + deviation * _normal(images, numbers)


def speckle_noise(images: Tensor, numbers: PointNumbers, *, deviation: float) -> Tensor:
    """Add normal noise whose standard deviation is proportional to the value."""
    return images + images * deviation * _normal(images, numbers)


def shot_noise(images: Tensor, numbers: PointNumbers, *, rate: float) -> Tensor:
    """Replace each value by a Poisson number of photons, of which white gives `rate` on average."""
    uniform = numbers.uniform(0, images[0].numel()).reshape(images.shape)
    return (_poisson(images.double() * rate, uniform) / rate).to(images.dtype)


def impulse_noise(images: Tensor, numbers: PointNumbers, *, amount: float) -> Tensor:
    """Set a share of the values to 0 or 1, each as often, in each channel independently of the others."""
    uniform = numbers.uniform(0, images[0].numel()).reshape(images.shape)
    white, black = uniform < amount / 2, (amount / 2 <= uniform) & (uniform < amount)
    return images.masked_fill(white, 1).masked_fill(black, 0)


def _normal(images: Tensor, numbers: PointNumbers) -> Tensor:
    return numbers.normal(0, images[0].numel()).reshape(images.shape)


def _poisson(rates: Tensor, uniform: Tensor) -> Tensor:
    """Give the smallest count whose Poisson distribution function exceeds the uniform number, which makes it a Poisson
    number. Both (...); the result is float64.

    Images of bytes have few distinct rates, and the distribution functions are tabulated for these alone.
    """
    distinct, which = rates.unique(return_inverse=True)
    highest = float(distinct[-1])
    # A number of float32 below 1 is at least 2**-24 from it, which is less than six deviations.
    counts = torch.arange(math.ceil(highest + 8 * math.sqrt(highest)) + 20, device=rates.device, dtype=rates.dtype)
    rows = max(1, _TABLE_ENTRIES // len(counts))
    order = which.flatten().argsort()
    sorted_uniform, sorted_which = uniform.flatten()[order].double(), which.flatten()[order]
    ends = torch.bincount(sorted_which, minlength=len(distinct)).cumsum(0)
    drawn, start = [], 0
    for first in range(0, len(distinct), rows):
        some = distinct[first : first + rows, None]
        end = int(ends[first + len(some) - 1])
        table = (torch.xlogy(counts, some) - some - torch.lgamma(counts + 1)).exp().cumsum(1)
        table[:, -1] = 1
        # Row r is moved to [r, r + 1], so that one search over all rows finds the count.
        row = torch.arange(len(some), device=rates.device)
        own_row = sorted_which[start:end] - first
        place = torch.searchsorted(
            (table.clamp(max=1) + row[:, None]).flatten(), sorted_uniform[start:end] + own_row, right=True
        )
        drawn.append(place - own_row * len(counts))
        start = end
    return torch.empty_like(rates).flatten().scatter(0, order, torch.cat(drawn).to(rates.dtype)).reshape(rates.shape)
