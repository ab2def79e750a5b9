"""Corruptions by digital processing: contrast, elastic transform, pixelate, JPEG, and saturation.

The functions take images (points, channels, height, width) in [0, 1]; the results may lie outside.
"""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.threats.corruptions.bilinear import sample
from core.threats.corruptions.resizing import resize
from core.threats.corruptions.smoothing import smooth
from core.threats.random_numbers import PointNumbers


def contrast(images: Tensor, *, factor: float) -> Tensor:
    """Scale the distance of each value from the mean of its channel."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def saturate(images: Tensor, *, factor: float, amount: float) -> Tensor:
    """Change the saturation (S of HSV) to `factor` times itself plus `amount`, with the same hue and value.

    Grey has the hue of red, as in the original: where there is an amount to add, it becomes reddish. Images with one
    channel have no saturation and stay as they are.
    """
    if images.shape[1] == 1:
        return images
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    saturation = spread / value.clamp(min=torch.finfo(images.dtype).tiny)
    wanted = (saturation * factor + amount).clamp(0, 1)
    red = torch.zeros(images.shape[1], 1, 1, device=images.device, dtype=images.dtype)
    red[1:] = 1
    # How much each channel loses of the value at full saturation: the hue.
    hue = torch.where(spread > 0, (value - images) / spread, red)
    return value * (1 - hue * wanted)


def elastic_transform(
    images: Tensor, numbers: PointNumbers, *, side: int, displacement: float, sigma: float, jitter: float
) -> Tensor:
    """Shear and shift the image, then move its pixels along a smooth random field.

    The affine map takes three points of the image to places up to `jitter` pixels away in each direction; the field is
    uniform noise, smoothed by `sigma` pixels and `displacement` times as strong. All are in pixels of images whose
    shorter side is `side`.
    """
    height, width = images.shape[2:]
    scale = min(height, width) / side
    rows, columns = (torch.arange(size, device=images.device, dtype=torch.float64) for size in (height, width))
    rows, columns = rows[:, None].expand(height, width), columns.expand(height, width)
    moved = sample(images, *_affine(numbers.uniform(0, 6), jitter * scale, rows, columns), mirror="pixel")
    if displacement == 0:
        return moved
    field = numbers.uniform(1, 2 * height * width).reshape(-1, 2, height, width) * 2 - 1
    field = smooth(field, sigma * scale, reach=3, border="mirror") * displacement * scale
    right, down = field.unbind(1)
    return sample(moved, rows + down, columns + right, mirror="edge")


def _affine(uniform: Tensor, jitter: float, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Give for each pixel the row and the column (points, height, width) from which an affine map takes its value.

    The map takes the corners of a square around the middle, whose side is two thirds of the image's shorter one (all
    but the lower left corner), to places up to `jitter` away. uniform (points, 6): in [0, 1).
    """
    height, width = rows.shape
    half = min(height, width) // 3
    corners = torch.tensor([[half, half], [half, -half], [-half, -half]], device=rows.device, dtype=rows.dtype)
    corners = corners + torch.tensor([width // 2, height // 2], device=rows.device)
    places = corners + (uniform.double().reshape(-1, 3, 2) * 2 - 1) * jitter
    # A place is the second one plus shares of the two sides; so is where it comes from, with the sides of the square.
    first, second = places[:, 0] - places[:, 1], places[:, 2] - places[:, 1]
    area = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])[:, None, None]
    right = columns - places[:, 1, 0, None, None]
    down = rows - places[:, 1, 1, None, None]
    first, second = first[..., None, None], second[..., None, None]
    along_first = (right * second[:, 1] - down * second[:, 0]) / area
    along_second = (down * first[:, 0] - right * first[:, 1]) / area
    return corners[1, 1] + 2 * half * along_first, corners[1, 0] - 2 * half * along_second


def pixelate(images: Tensor, *, factor: float) -> Tensor:
    """Make the image smaller and enlarge it again, with box filters, in bytes."""
    height, width = images.shape[2:]
    smaller = resize((images.double() * 255).round(), int(height * factor), int(width * factor))
    return resize(smaller, height, width) / 255


def jpeg_compression(images: Tensor, *, quality: int) -> Tensor:
    """Write and read the image as a JPEG of Pillow's, whose encoder is the definition and takes one image at a time.

    Images that are neither grey nor RGB are written as a grey image for each channel.
    """
    pixels = (images * 255).round().to(torch.uint8).cpu()
    pixels = pixels.flatten(0, 1) if pixels.shape[1] != 3 else pixels.permute(0, 2, 3, 1)
    decoded = torch.from_numpy(np.stack([_through_jpeg(image, quality) for image in pixels.numpy()]))
    if images.shape[1] == 3:
        decoded = decoded.permute(0, 3, 1, 2)
    return decoded.reshape(images.shape).to(images.device, images.dtype) / 255


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image)
