"""Spatter: drops of water, or of mud, on the lens."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from core.threats.corruptions.grey import tint_for
from core.threats.corruptions.smoothing import smooth
from core.threats.random_numbers import PointNumbers

_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_FARTHEST = 20
"""Pixels from which on the distance to a drop's edge makes no difference."""
_EMBOSSING = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))


def spatter(
    images: Tensor,
    numbers: PointNumbers,
    *,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    amount: float,
    mud: bool,
) -> Tensor:
    """Cover images (points, channels, height, width) with drops, where smoothed normal noise exceeds a threshold.

    amount: the strength of water; the width in pixels of the Gaussian that smooths mud. The result may lie outside
    [0, 1].
    """
    height, width = images.shape[2:]
    noise = mean + deviation * numbers.normal(0, height * width).reshape(-1, height, width)
    liquid = smooth(noise, sigma)
    liquid = liquid.where(liquid >= threshold, 0)
    if mud:
        cover = smooth((liquid > threshold).double(), amount)
        cover = cover.where(cover >= 0.8, 0).to(images.dtype)[:, None]
        return images * (1 - cover) + cover * tint_for(images, *_MUD)
    shine = (liquid.clamp(0, 1) * 255 + 1e-3).floor() * _relief(liquid > 0)
    brightest = shine.amax((1, 2), keepdim=True)
    shine = (amount * shine / brightest.clamp(min=1)).to(images.dtype)
    return images + shine[:, None] * tint_for(images, *_WATER)


def _relief(drops: Tensor) -> Tensor:
    """Light drops (points, height, width) bool from the upper left, with values from 0 to 255, as the original does.

    Two steps are simpler: an edge is a pixel of a drop beside one of no drop, where the original takes what Canny's
    detector finds; and distances to edges are along steps to the eight neighbours, up to 8 % too long.
    """
    edges = drops & (_shifted(drops.float(), 1.0).amin(0) < 1)
    distance = (_blur(_distance_to(edges).clamp(max=_FARTHEST)) + 1e-3).floor()
    weights = torch.tensor(_EMBOSSING).to(distance).flatten()[:, None, None, None]
    embossed = (weights * _shifted(_equalise(distance), None)).sum(0)
    return _blur(embossed.clamp(0, 255)).round()


def _distance_to(edges: Tensor) -> Tensor:
    """Give the distance of each pixel to the nearest edge, along steps to the eight neighbours."""
    distance = torch.full(edges.shape, 2.0 * _FARTHEST, dtype=torch.float32, device=edges.device).masked_fill(edges, 0)
    diagonal = math.sqrt(2)
    steps = torch.tensor([diagonal, 1, diagonal, 1, 0, 1, diagonal, 1, diagonal]).to(distance)[:, None, None, None]
    for _ in range(_FARTHEST):
        distance = (_shifted(distance, 2.0 * _FARTHEST) + steps).amin(0)
    return distance


def _equalise(values: Tensor) -> Tensor:
    """Equalise the histogram of whole numbers (points, height, width), to values from 0 to 255."""
    flat = values.long().flatten(1)
    counts = torch.zeros(len(flat), 256, device=flat.device, dtype=torch.int64)
    counts = counts.scatter_add(1, flat, torch.ones_like(flat))
    below = counts.cumsum(1)
    lowest = counts.gather(1, flat.amin(1, keepdim=True))
    rank = (below.gather(1, flat) - lowest).double() / (flat.shape[1] - lowest).clamp(min=1)
    # An image of a single value stays as it is.
    return torch.where(lowest == flat.shape[1], flat.double(), (rank * 255).round()).reshape(values.shape)


def _blur(values: Tensor) -> Tensor:
    """Average each pixel with its eight neighbours."""
    return _shifted(values, None).mean(0)


def _shifted(values: Tensor, outside: float | None) -> Tensor:
    """Stack the nine neighbours of each pixel (9, points, height, width), from the upper left to the lower right.

    outside: the value outside the image; None for its mirror image about the border pixels.
    """
    height, width = values.shape[1:]
    if outside is None:
        padded = F.pad(values[:, None], [1] * 4, mode="reflect").squeeze(1)
    else:
        padded = F.pad(values, [1] * 4, value=outside)
    return torch.stack(
        [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    )
