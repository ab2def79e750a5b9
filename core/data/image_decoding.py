"""Decode image files as people see them, to 8 bits per channel.

The content of a file decides on its format, not its name. Pictures are turned as their EXIF orientation says;
transparent pixels are shown on white; of animations the first frame is taken. Grey pictures stay grey, whatever the
file stores them as.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from core.data.class_folders import FORMATS_IN_WORDS, SUFFIXES
from core.data.safe_zip import ends_as_archive

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

MOST_PIXELS = 2**24
"""Pixels of an image of a data set that fits the memory."""

HEAD = 32
"""Bytes at the start of a file that tell its format."""

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"8BPS": "Photoshop",
    b"\x00\x00\x01\x00": "icon",
}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF"}
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what shows the picture upright; from 5 on, width and height change places."""


class Unusable(Exception):
    """An image cannot be used; the message is the reason."""


class Decoded(NamedTuple):
    """A decoded image."""

    image: Image.Image
    """Grey ("L") or colour ("RGB")."""
    is_transparent: bool
    """Whether pixels of it are transparent in the file, fully or in part."""


def find_format(head: bytes) -> str | None:
    """Tell the format of an image file, supported or not, by its first bytes; None for a file of another kind."""
    for start, name in _STARTS.items():
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def is_image(name: str, head: bytes) -> bool:
    """Whether a file's first bytes or its name mark it as an image, even one that cannot be used."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES or find_format(head) is not None


def read_size(content: bytes) -> tuple[int, int]:
    """Return the width and height of an image as it is seen, from its header. Raises Unusable."""
    with _opened(content, MOST_PIXELS) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def decode(content: bytes, *, most_pixels: int | None = MOST_PIXELS) -> Decoded:
    """Decode an image. most_pixels: None for Pillow's own limit. Raises Unusable."""
    with _opened(content, most_pixels) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright = image.transpose(turn) if turn is not None else image
        return _in_bytes(upright)


def decode_pixels(pixels: np.ndarray) -> Decoded:
    """Take pixels as an image: (height, width), or (height, width, 3 or 4) uint8. Transparent ones are put on white."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return _on_white(image, is_grey=False) if image.mode == "RGBA" else Decoded(image, is_transparent=False)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied; Pillow applies that of TIFF files itself."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (ValueError, TypeError, KeyError, SyntaxError, struct.error):
        # The picture can be seen without these notes, and every program shows it.
        return 1


def _in_bytes(image: Image.Image) -> Decoded:
    """Convert an image to 8-bit grey ("L") or colour ("RGB"); white stays white.

    Pillow converts 16-bit colour to 8 bits when it reads it, but would clip 16-bit grey at 255.
    """
    if image.mode == "L" and "transparency" not in image.info:
        return Decoded(image, is_transparent=False)
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        return Decoded(Image.fromarray(((wide + 128) // 257).astype(np.uint8)), is_transparent=False)
    if image.mode in ("I", "F"):
        return Decoded(_from_wide(image), is_transparent=False)
    if image.has_transparency_data:
        return _on_white(
            image.convert("RGBA"), is_grey=image.mode in ("1", "L", "LA", "La") or _has_grey_palette(image)
        )
    if image.mode in ("1", "L") or _has_grey_palette(image):
        return Decoded(image.convert("L"), is_transparent=False)
    return Decoded(image.convert("RGB"), is_transparent=False)


def _from_wide(image: Image.Image) -> Image.Image:
    """Convert 16 bits of grey that Pillow holds in 32. Raises Unusable for pixels whose white is not known."""
    wide = np.asarray(image)
    if image.mode == "F" or image.format == "TIFF":
        what = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise Unusable(f"its pixels are {what}, which do not say what is white: store it with 8 or 16 bits")
    return Image.fromarray(((wide.astype(np.int64) + 128) // 257).astype(np.uint8))


def _has_grey_palette(image: Image.Image) -> bool:
    """Whether an image has a palette, of which it uses only greys."""
    if image.mode not in ("P", "PA"):
        return False
    palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image.getchannel("P") if image.mode == "PA" else image))
    colours = palette[used[used < len(palette)]]
    return bool((colours == colours[:, :1]).all())


def _on_white(image: Image.Image, *, is_grey: bool) -> Decoded:
    is_transparent = bool(image.getchannel("A").getextrema()[0] != 255)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    shown = Image.alpha_composite(white, image)
    return Decoded(shown.convert("L" if is_grey else "RGB"), is_transparent)


@contextmanager
def _opened(content: bytes, most_pixels: int | None) -> Iterator[Image.Image]:
    """Open an image of a supported format and size. Raises Unusable, also for errors inside the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if most_pixels is not None and width * height > most_pixels:
                    raise Unusable(f"it is {width} x {height}, more than {most_pixels:,} pixels: too large, or a bomb")
                if ends_as_archive(content):
                    raise Unusable("it is an archive as well as an image")
                yield image
    except UnidentifiedImageError as error:
        raise Unusable(_no_format(content)) from error
    except MemoryError as error:
        raise Unusable("it does not fit into memory") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise Unusable(f"it cannot be decoded: {str(error) or type(error).__name__}") from error


def _no_format(content: bytes) -> str:
    if not content:
        return "it is empty"
    found = find_format(content[:HEAD])
    if found is None:
        return f"it is not a {FORMATS_IN_WORDS} image"
    if found in FORMATS:
        return f"it begins as a {found} image, but is damaged"
    return f"it is a {found} image: convert it to JPEG or PNG"
