"""Corruptions by weather: snow, frost, fog, and brightness.

The functions take images (points, channels, height, width) in [0, 1]; the results may lie outside.
"""

import torch
from torch import Tensor

from core.threats.corruptions.grey import grey_of, tint_for
from core.threats.corruptions.motion import blur_along
from core.threats.corruptions.plasma import plasma
from core.threats.corruptions.zooming import enlarge
from core.threats.random_numbers import PointNumbers

# Measured on the five textures of the original, in the units of images: the range of their mean values, and how far
# the mean red, green and blue are from the mean.
_FROST_LEVELS = (0.44, 0.8)
_FROST_TINT = (-0.07, 0.01, 0.06)


def snow(
    images: Tensor,
    numbers: PointNumbers,
    *,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> Tensor:
    """Whiten the image, and add flakes: enlarged normal noise above a threshold, blurred along a falling direction."""
    height, width = images.shape[2:]
    layer = mean + deviation * numbers.normal(0, height * width).reshape(-1, 1, height, width)
    layer = enlarge(layer, zoom)
    layer = layer.where(layer >= threshold, 0).clamp(max=1)
    flakes = blur_along(layer, 90 * numbers.uniform(1, 1).squeeze(1) - 135, radius=radius, sigma=sigma)
    whitened = keep * images + (1 - keep) * torch.maximum(images, grey_of(images) * 1.5 + 0.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))


def frost(
    images: Tensor, numbers: PointNumbers, *, keep: float, amount: float, contrast: float, decay: float
) -> Tensor:
    """Add a texture of ice crystals to a darkened image.

    The original crops one of five photographs, which are not bundled here. This texture is plasma, folded at its
    middle so that it has ridges, bluish, with a random mean and the standard deviation `contrast`. Mean, tint, contrast
    and `decay`, which says how alike neighbouring pixels are, are measured on crops of the photographs.
    """
    maps = plasma(numbers, 0, *images.shape[2:], decay=decay)
    ridges = 1 - (2 * maps - 1).abs()
    spread, middle = torch.std_mean(ridges, (1, 2), correction=0, keepdim=True)
    lowest, highest = _FROST_LEVELS
    level = lowest + (highest - lowest) * numbers.uniform(1, 1)[:, :, None]
    grey = level + contrast * (ridges - middle) / spread.clamp(min=1e-6)
    texture = (grey[:, None] + tint_for(images, *_FROST_TINT)).clamp(0, 1)
    return keep * images + amount * texture


def fog(images: Tensor, numbers: PointNumbers, *, amount: float, decay: float) -> Tensor:
    """Add a plasma, and scale so that the brightest value of the image stays possible."""
    maps = plasma(numbers, 0, *images.shape[2:], decay=decay)[:, None]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * maps) * brightest / (brightest + amount)


def brightness(images: Tensor, *, amount: float) -> Tensor:
    """Add to the value, the largest channel (V of HSV), with the same hue and saturation."""
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * brighter / value, brighter)
