"""What training does to a batch of images before it attacks them, on the device that holds them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.catalog import Augmentation


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Change each image (batch, channels, height, width) at random and independently; the shape stays.

    The generator lives on the CPU, so that one seed draws the same on every device.
    """
    match augmentation:
        case "none":
            return images
        case "crop-flip":
            return _flip(_crop(images, generator), generator)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad with zeros by an eighth of the size (4 pixels for 32) and cut out the old size anywhere."""
    batch, _, height, width = images.shape
    margin = max(height, width) // 8
    padded = F.pad(images, [margin] * 4)
    top, left = torch.randint(0, 2 * margin + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
    each = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[each, channel, rows, columns]


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right half of the time."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
