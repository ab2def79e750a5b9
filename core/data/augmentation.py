"""Augmentation of a training batch, before it is attacked, on the device of the images."""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from core.schema.catalog import Augmentation


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Augment each image (batch, channels, height, width) independently; the shape stays the same.

    generator: on the CPU, so that one seed gives the same draws on every device.
    """
    match augmentation:
        case "none":
            return images
        case "crop-flip":
            return _flip(_crop(images, generator), generator)
        case "resized-crop-flip":
            return _flip(_resized_crop(images, generator), generator)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad with zeros by an eighth of the size (4 pixels for 32), and crop to the old size at a random position."""
    batch, _, height, width = images.shape
    margin = max(height, width) // 8
    padded = F.pad(images, [margin] * 4)
    top, left = torch.randint(0, 2 * margin + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
    each = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[each, channel, rows, columns]


def _resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop 8 to 100 % of the area with an aspect ratio from 3:4 to 4:3, and resize it (Szegedy et al. 2015).

    Of ten boxes per image the first that lies inside is used, or the whole image where none does.
    """
    batch, _, height, width = images.shape
    area = 0.08 + 0.92 * torch.rand(10, batch, generator=generator)
    shape = torch.empty(10, batch).uniform_(log(3 / 4), log(4 / 3), generator=generator).exp()
    # Sides as fractions of the image's sides: the image need not be square.
    across, down = (area * shape * height / width).sqrt(), (area / shape * width / height).sqrt()
    inside = torch.cat([(across <= 1) & (down <= 1), torch.ones(1, batch, dtype=torch.bool)])
    first = inside.int().argmax(0)[None]
    across, down = (torch.cat([side, torch.ones(1, batch)]).gather(0, first)[0] for side in (across, down))
    left, top = torch.rand(2, batch, generator=generator) * (1 - torch.stack([across, down]))
    # grid_sample counts from -1 to 1.
    zero = torch.zeros(batch)
    rows = torch.stack([across, zero, 2 * left + across - 1, zero, down, 2 * top + down - 1], dim=1)
    grid = F.affine_grid(rows.view(batch, 2, 3).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image horizontally with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
