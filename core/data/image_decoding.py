"""Decode image files to 8 bits per channel, from 16 bits, palettes and transparency too."""

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")


def in_bytes(image: Image.Image) -> Image.Image:
    """Decode an image to 8-bit grey ("L") or colour ("RGB"); white stays white.

    Pillow converts 16-bit colour to 8 bits when it reads it, but would clip 16-bit grey at 255.
    """
    if image.mode == "L":
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    return image.convert("RGB")
