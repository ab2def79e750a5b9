"""Common corruptions (Hendrycks & Dietterich 2019, arXiv 1903.12261), made from the images of any data set.

Formulas and severities are those with which CIFAR-10-C and ImageNet-C were made. What differs, by intention:
- The results are not rounded to bytes, and lengths in pixels do not follow the size of the image (but those of
  elastic_transform do, as in the original).
- The texture of frost is made of random numbers (`weather`), and the relief of spatter's water is simplified
  (`spatter`): figures of these two are not those of the official files.
- Both sides of an image may differ, and it may have any number of channels. What is about colour takes the grey value
  of images that are not RGB: tints become grey, and saturate leaves images with one channel as they are.

For the official files see `core.data.cifar10_c`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from core.threats.corruptions import blur, digital, noise, spatter, weather
from core.threats.corruptions.severities import (
    NAMES,
    STANDARD,
    Table,
    arguments_of,
    check_corruption,
    table_of,
)
from core.threats.random_numbers import PointNumbers

__all__ = ["NAMES", "STANDARD", "Table", "check_corruption", "corrupt", "table_of"]

_AT_ONCE = 2**22
"""Values of images that are computed together, which bounds the memory."""

_RANDOM: Mapping[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "spatter": spatter.spatter,
    "elastic_transform": digital.elastic_transform,
}
"""Functions of images and the points' random numbers."""
_FIXED: Mapping[str, Callable[..., Tensor]] = {
    "defocus_blur": blur.defocus_blur,
    "zoom_blur": blur.zoom_blur,
    "gaussian_blur": blur.gaussian_blur,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "saturate": digital.saturate,
}
"""Functions of images alone."""


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int, *, seed: int) -> Tensor:
    """Corrupt images (points, channels, height, width) in [0, 1]; the result has the same shape, range, dtype, device.

    name: one of NAMES; severity: 1 to 5. The random numbers of a point depend on the seed and its own pixels, and not
    on the other images; all severities of a corruption use the same numbers. Raises BadInput.
    """
    shape = images.shape[1:]
    check_corruption(name, severity, shape)
    arguments = arguments_of(name, severity, shape)

    def of(chunk: Tensor) -> Tensor:
        if name in _FIXED:
            return _FIXED[name](chunk, **arguments)
        return _RANDOM[name](chunk, PointNumbers(seed, chunk), **arguments)

    chunks = images.split(max(1, _AT_ONCE // shape.numel()))
    return torch.cat([of(chunk).clamp(0, 1).to(images.dtype) for chunk in chunks])
