"""Zooming into the middle of images."""

import math

import torch
from torch import Tensor


def enlarge(images: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of images (..., height, width) by a factor of 1 or more, to the size that they had.

    The corner pixels of the part that is enlarged stay corner pixels, as with `scipy.ndimage.zoom`; bilinear.
    """
    for side in (-2, -1):
        size = images.shape[side]
        part = math.ceil(size / factor)
        enlarged = round(part * factor)
        taken = torch.arange(size, device=images.device, dtype=torch.float64) + (enlarged - size) // 2
        at = (size - part) // 2 + taken * (part - 1) / max(1, enlarged - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=size - 1)
        share = (at - low).to(images.dtype)
        if side == -2:
            share = share[:, None]
        images = images.index_select(side, low) * (1 - share) + images.index_select(side, high) * share
    return images
