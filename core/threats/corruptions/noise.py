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
    if len(distinct) <= rows:
        return _invert(distinct, counts, which, uniform)
    order = which.flatten().argsort()
    which, uniform = which.flatten()[order], uniform.flatten()[order]
    ends = torch.bincount(which, minlength=len(distinct)).cumsum(0)[rows - 1 :: rows].tolist()
    drawn, start = [], 0
    for first, end in zip(range(0, len(distinct), rows), [*ends, len(order)], strict=False):
        drawn.append(_invert(distinct[first : first + rows], counts, which[start:end] - first, uniform[start:end]))
        start = end
    return torch.empty_like(rates).flatten().scatter(0, order, torch.cat(drawn)).reshape(rates.shape)


def _invert(rates: Tensor, counts: Tensor, which: Tensor, uniform: Tensor) -> Tensor:
    """Invert the distribution functions of some rates (rows,), tabulated at all counts; which (...): the row of each
    number."""
    table = (torch.xlogy(counts, rates[:, None]) - rates[:, None] - torch.lgamma(counts + 1)).exp().cumsum(1)
    table[:, -1] = 1
    # Row r is moved to [r, r + 1], so that one search over all rows finds the count.
    table = table.clamp(max=1) + torch.arange(len(rates), device=rates.device)[:, None]
    place = torch.searchsorted(table.flatten(), uniform.double() + which, right=True)
    return (place - which * len(counts)).to(rates.dtype)
