"""What training does to a batch of images before it attacks them, on the device that holds them."""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from core.schema.catalog import Augmentation


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Change each image (batch, channels, height, width) at random and independently; the shape stays.

    The generator lives on the CPU, so that one seed draws the same on every device.
    """
    match augmentation:
        case "none":
            return images
        case "crop-flip":
            return _flip(_crop(images, generator), generator)
        case "resized-crop-flip":
            return _flip(_resized_crop(images, generator), generator)


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


def _resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut out 8 to 100 % of the area, of a shape from 3:4 to 4:3, and resize it to the old size (Szegedy et al. 2015).

    Of ten boxes for each image the first that is inside is taken, and the whole image where none is.
    """
    batch, _, height, width = images.shape
    area = 0.08 + 0.92 * torch.rand(10, batch, generator=generator)
    shape = torch.empty(10, batch).uniform_(log(3 / 4), log(4 / 3), generator=generator).exp()
    # Sides as shares of the image's own: the image need not be square.
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
    """Mirror each image left to right half of the time."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
