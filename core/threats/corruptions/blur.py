"""Corruptions that blur: defocus, frosted glass, motion, zoom, and the plain Gaussian.

The functions take images (points, channels, height, width) in [0, 1].
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.threats.corruptions.motion import blur_along
from core.threats.corruptions.smoothing import smooth
from core.threats.corruptions.zooming import enlarge
from core.threats.random_numbers import PointNumbers


def gaussian_blur(images: Tensor, *, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels; outside the image are its border pixels."""
    return smooth(images, sigma)


def defocus_blur(images: Tensor, *, radius: float, sigma: float) -> Tensor:
    """Blur with a disk, as a lens out of focus does; the image is mirrored at its border pixels."""
    kernel = disk(radius, sigma)
    reach = len(kernel) // 2
    height, width = images.shape[2:]
    padded = F.pad(images, [reach] * 4, mode="reflect")
    blurred = torch.zeros_like(images)
    for row, weights in enumerate(kernel.tolist()):
        for column, weight in enumerate(weights):
            if weight:
                # Not a convolution: its rounding depends on the batch.
                blurred += weight * padded[..., row : row + height, column : column + width]
    return blurred


def disk(radius: float, sigma: float) -> Tensor:
    """Give a disk whose border is softened with a Gaussian, as a kernel (size, size) of float64 that sums to 1.

    The Gaussian has 3 x 3 pixels for a radius up to 8, then 5 x 5. The original makes the kernel too small for the
    softened border of a disk with a radius of 8 or 10, and its images become up to 1.5 % brighter; these do not.
    """
    soft = 1 if radius <= 8 else 2
    reach = math.floor(radius) + soft
    squares = torch.arange(-reach, reach + 1).double() ** 2
    inside = (squares + squares[:, None] <= radius**2).double()
    border = torch.arange(-soft, soft + 1).double()
    weights = (-0.5 * (border / sigma) ** 2).exp()
    weights /= weights.sum()
    softened = F.conv2d(inside[None, None] / inside.sum(), torch.outer(weights, weights)[None, None], padding=soft)
    return softened[0, 0]


def glass_blur(images: Tensor, numbers: PointNumbers, *, sigma: float, reach: int, repeats: int) -> Tensor:
    """Blur, move pixels by up to `reach`, `repeats` times, and blur again.

    The original means to swap two pixels, in an order from the last pixel to the first, but copies the one over the
    other; the official files have it so, and so do these.
    """
    pixels = (smooth(images, sigma) * 255 + 1e-3).floor().flatten(2)
    height, width = images.shape[2:]
    for repeat in range(repeats):
        taken = displace(numbers, repeat, height, width, reach)
        pixels = pixels.gather(2, taken[:, None].expand(pixels.shape))
    return smooth(pixels.reshape(images.shape) / 255, sigma)


def displace(numbers: PointNumbers, step: int, height: int, width: int, reach: int) -> Tensor:
    """Copy from the last pixel to the first another pixel over each, all that is within `reach` of the border excepted.

    Gives (points, height * width): the pixel of the image before whose value each has in the end. The other pixel is
    -reach to reach - 1 rows and columns away. One that came earlier already has another's value: what is copied is
    found by following such steps to the end, doubling their length each time.
    """
    offsets = numbers.integers(step, 2 * height * width, 2 * reach) - reach
    down, right = offsets.reshape(-1, 2, height, width).unbind(1)
    rows, columns = torch.meshgrid(
        *(torch.arange(size, device=offsets.device) for size in (height, width)), indexing="ij"
    )
    moves = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    here = rows * width + columns
    source = torch.where(moves, here + down * width + right, here).flatten(1)
    here, moves = here.flatten(), moves.flatten()
    # Larger pixel numbers came earlier.
    ends = ~((source > here) & moves[source])
    while not bool(ends.all()):
        source, ends = torch.where(ends, source, source.gather(1, source)), ends | ends.gather(1, source)
    return source


def motion_blur(images: Tensor, numbers: PointNumbers, *, radius: float, sigma: float) -> Tensor:
    """Blur along a line in a random direction, up to 45 degrees from the horizontal."""
    return blur_along(images, 90 * numbers.uniform(0, 1).squeeze(1) - 45, radius=radius, sigma=sigma)


def zoom_blur(images: Tensor, *, last: float, step: float) -> Tensor:
    """Average the image with itself at zooms from 1 to `last`."""
    # Whether the last one is included depends on rounding; the severities are defined by what NumPy makes of them.
    factors = np.arange(1, last, step).tolist()
    total = images
    for factor in factors:
        total = total + enlarge(images, factor)
    return total / (len(factors) + 1)
