"""An image file as bytes per pixel: which formats are read, and what becomes of 16 bits, transparency and palettes."""

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")


def in_bytes(image: Image.Image) -> Image.Image:
    """Decode an image to grey ("L") or colour ("RGB") of 8 bits, where white stays white.

    Pillow itself reads colour of 16 bits as 8, and would cut off grey of 16 bits at 255.
    """
    if image.mode == "L":
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    return image.convert("RGB")
