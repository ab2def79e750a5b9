"""Corner colours: colours of pixels whose channels are 0 or 1 each, which Sparse-RS alone uses."""

import torch
from torch import Tensor


def corners(draws: Tensor, images: Tensor) -> Tensor:
    """Turn draws (...), uniform in [0, 1), into channels of corner colours (...) of the images' type."""
    return (draws < 0.5).to(images.dtype)


def other_corners(colours: Tensor, draws: Tensor) -> Tensor:
    """Turn draws (points, channels), uniform in [0, 1), into corner colours that differ from the given ones.

    colours (points, channels): of any kind; each corner that differs from them is equally likely.
    """
    channels = colours.shape[1]
    is_corner = ((colours == 0) | (colours == 1)).all(1, keepdim=True)
    # A colour differs where a channel flips. These are the channels that flip if none before them does: with m channels
    # left, that is so for half of the 2^m combinations, of which the one without a flip is not allowed.
    left = torch.arange(channels, 0, -1, device=draws.device)
    first = draws < 1 / (2 - 2.0 ** (1 - left))
    after_first = first.cumsum(1) > first.long()
    flips = torch.where(is_corner & ~after_first, first, draws < 0.5)
    return ((colours == 1) ^ flips).to(colours.dtype)


def number_of(corner_colours: Tensor) -> Tensor:
    """Number corner colours (points, channels) from 0 to 2^channels - 1: (points,) of int64."""
    powers = 2 ** torch.arange(corner_colours.shape[1], device=corner_colours.device)
    return (corner_colours.long() * powers).sum(1)
