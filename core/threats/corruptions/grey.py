"""The grey value of images, and tints for images of any number of channels."""

import torch
from torch import Tensor

# ITU-R BT.601, which OpenCV and Pillow use, and with them the original corruptions; adversarial snow takes BT.709
# (`core.threats.snow`).
_WEIGHTS = (0.299, 0.587, 0.114)


def grey_of(images: Tensor) -> Tensor:
    """Give the grey value (points, 1, height, width): the luma of RGB images, the mean of the channels of others."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = (weight * channel for weight, channel in zip(_WEIGHTS, images.split(1, dim=1), strict=True))
    return red + green + blue


def tint_for(images: Tensor, red: float, green: float, blue: float) -> Tensor:
    """Give a colour (1, channels, 1, 1) for images: as it is for RGB images, its grey value for others."""
    colour = torch.tensor([red, green, blue], device=images.device, dtype=images.dtype)[:, None, None]
    return colour[None] if images.shape[1] == 3 else grey_of(colour[None])
