"""JPEG as a differentiable function: baseline, 8 bits, colour with chrominance at half the resolution (4:2:0).

ITU-T T.81 (1992) for blocks and tables, JFIF 1.02 (ITU-T T.871) for colour. The encoder rounds where libjpeg does, so
that its coefficients are those of Pillow; the derivative of rounding is taken as one (straight-through), so that
gradients flow from the decoded image to the image. The decoder interpolates chrominance as libjpeg does. Coefficients
need not be integers for it, and it rounds only where it is asked to.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8


class Tables(NamedTuple):
    """Quantisation tables, each of 64 divisors: rows of increasing vertical, columns of increasing horizontal
    frequency."""

    luminance: Sequence[int]
    chrominance: Sequence[int]


# fmt: off
STANDARD = Tables(
    luminance=(
        16, 11, 10, 16, 24, 40, 51, 61,
        12, 12, 14, 19, 26, 58, 60, 55,
        14, 13, 16, 24, 40, 57, 69, 56,
        14, 17, 22, 29, 51, 87, 80, 62,
        18, 22, 37, 56, 68, 109, 103, 77,
        24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101,
        72, 92, 95, 98, 112, 100, 103, 99,
    ),
    chrominance=(
        17, 18, 24, 47, 99, 99, 99, 99,
        18, 21, 26, 66, 99, 99, 99, 99,
        24, 26, 56, 99, 99, 99, 99, 99,
        47, 66, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99,
    ),
)
# fmt: on
"""The tables of T.81, annex K: quality 50 of libjpeg and Pillow."""

# Fractions of 65536, as in libjpeg: so halves are halves, and fall to the same side.
_TO_YCBCR = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
# The discrete cosine transform of libjpeg times the root of 8, in fractions of 8192 (Loeffler et al. 1989, as jfdctint
# rounds it): the right half of a row mirrors the left one, with the opposite sign in odd rows.
_COSINES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
_MIDDLE = 128.0

Planes = list[Tensor]
"""Quantised coefficients: (images, planes, rows, columns, 8, 8) of the luminance, and for colour images of the two
chrominances. An 8 x 8 block has frequencies as in `Tables`."""


def compress(images: Tensor, tables: Tables = STANDARD) -> Tensor:
    """Encode images (images, channels, height, width) in [0, 1] and decode them again.

    Three channels are a colour image; any other number are grey ones, each by itself. In float64 the result is
    within one grey level of Pillow's; in float32, rounding takes another coefficient now and then, about one in 10^6.
    """
    return decode(encode(images, tables), tables, images.shape[2:], rounded=True)


def shapes_of(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Give the shapes of the planes of an image (channels, height, width)."""
    channels, height, width = shape
    if channels == 3:
        rows, columns = ceil(height / (2 * BLOCK)), ceil(width / (2 * BLOCK))
        return [(1, 2 * rows, 2 * columns, BLOCK, BLOCK), (2, rows, columns, BLOCK, BLOCK)]
    return [(channels, ceil(height / BLOCK), ceil(width / BLOCK), BLOCK, BLOCK)]


def encode(images: Tensor, tables: Tables = STANDARD) -> Planes:
    """Turn images (images, channels, height, width) in [0, 1] into quantised coefficients, which are integers.

    The edges are repeated up to a multiple of 16 pixels, or of 8 for grey images.
    """
    _, rows, columns, *_ = shapes_of(images.shape[1:])[0]
    height, width = images.shape[2:]
    samples = _half_up(images * 255) - _MIDDLE
    samples = F.pad(samples, [0, BLOCK * columns - width, 0, BLOCK * rows - height], mode="replicate")
    if images.shape[1] != 3:
        return [_quantise(samples, tables.luminance)]
    samples = _mix(samples, [[weight / 2**16 for weight in row] for row in _TO_YCBCR])
    luminance, chrominance = _half_up(samples[:, :1]), _half_down(samples[:, 1:])
    return [_quantise(luminance, tables.luminance), _quantise(_halve(chrominance), tables.chrominance)]


def decode(planes: Planes, tables: Tables, size: Sequence[int], *, rounded: bool = False) -> Tensor:
    """Turn coefficients into images (images, channels, height, width) in [0, 1]; size: (height, width).

    rounded: whether it rounds where libjpeg does, which is right for integers.
    """
    height, width = size
    samples = [_dequantise(plane, table, rounded) for plane, table in zip(planes, tables, strict=False)]
    luminance = samples[0][:, :, :height, :width]
    if len(samples) == 1:
        return ((luminance + _MIDDLE) / 255).clamp(0, 1)
    # Beyond the image, an encoder may have put anything.
    chrominance = samples[1][:, :, : ceil(height / 2), : ceil(width / 2)]
    chrominance = F.interpolate(chrominance, scale_factor=2, mode="bilinear", align_corners=False)
    if rounded:
        chrominance = _by_columns(chrominance, 1 / 2, 7 / 16)
    colours = _mix(torch.cat([luminance, chrominance[:, :, :height, :width]], 1), _TO_RGB)
    return (((_half_up(colours) if rounded else colours) + _MIDDLE) / 255).clamp(0, 1)


def largest_change(colour: bool, tables: Tables = STANDARD) -> float:
    """Bound how far a pixel in [0, 1] can move while every coefficient moves by at most one."""
    cosines = _cosines(torch.zeros((), dtype=torch.float64)).abs()
    luminance, chrominance = (float((cosines.T @ _divisors(table, cosines) @ cosines).max()) / 8 for table in tables)
    furthest = max(sum(map(abs, row[1:])) for row in _TO_RGB) if colour else 0.0
    return (luminance + furthest * chrominance) / 255


def _quantise(samples: Tensor, table: Sequence[int]) -> Tensor:
    """Turn samples (images, planes, height, width) around zero into blocks of integers."""
    blocks = samples.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    cosines = _cosines(samples)
    # libjpeg transforms the rows first, and keeps two binary digits between the passes.
    rows = _half_up(blocks @ cosines.T * 4) / 4
    return _half_away(_half_up(cosines @ rows) / (8 * _divisors(table, samples)))


def _dequantise(blocks: Tensor, table: Sequence[int], rounded: bool) -> Tensor:
    """Turn blocks into samples around zero, (images, planes, height, width), clamped to 8 bits."""
    cosines = _cosines(blocks)
    columns = cosines.T @ (blocks * _divisors(table, blocks))
    samples = (_half_up(columns * 4) / 4 if rounded else columns) @ cosines / 8
    samples = samples.transpose(3, 4).flatten(4, 5).flatten(2, 3).clamp(-_MIDDLE, 255 - _MIDDLE)
    return _half_up(samples) if rounded else samples


def _cosines(like: Tensor) -> Tensor:
    """Give the discrete cosine transform of 8 samples times the root of 8, (frequencies, samples)."""
    left = torch.tensor(_COSINES, device=like.device, dtype=like.dtype) / 2**13
    is_odd = torch.arange(BLOCK, device=like.device)[:, None] % 2 == 1
    right = left.flip(1)
    return torch.cat([left, torch.where(is_odd, -right, right)], 1)


def _divisors(table: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(table, device=like.device, dtype=like.dtype).view(BLOCK, BLOCK)


def _mix(samples: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Mix the three planes of samples (images, 3, height, width), which lie around zero."""
    weights = torch.tensor(matrix, device=samples.device, dtype=samples.dtype)
    return torch.einsum("oi,nihw->nohw", weights, samples)


def _halve(samples: Tensor) -> Tensor:
    """Average 2 x 2 samples to an integer; a half is rounded down in even and up in odd columns, as in libjpeg."""
    return _by_columns(F.avg_pool2d(samples, 2), 1 / 4, 1 / 2)


def _by_columns(samples: Tensor, even: float, odd: float) -> Tensor:
    """Round down after adding a number that depends on the column."""
    columns = torch.arange(samples.shape[3], device=samples.device)
    return _through((samples + torch.where(columns % 2 == 0, even, odd)).floor(), samples)


def _half_up(values: Tensor) -> Tensor:
    return _through((values + 0.5).floor(), values)


def _half_down(values: Tensor) -> Tensor:
    return _through((values - 0.5).ceil(), values)


def _half_away(values: Tensor) -> Tensor:
    return _through(values.sign() * (values.abs() + 0.5).floor(), values)


def _through(rounded: Tensor, values: Tensor) -> Tensor:
    """Give rounded values the derivative of the values."""
    return rounded.detach() + (values - values.detach())
