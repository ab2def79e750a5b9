"""How a picture is seen: upright, on white, in grey where it is grey; and what a file is, by its content."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from core import data
from core.data.image_decoding import Unusable, decode, find_format, read_size
from core.data.safe_zip import Caps
from core.intake.inspect import inspect_dataset
from tests.support.images import image, two_classes, wide, write

_RAMP = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8


def _saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _turned(orientation: int, kind: str) -> bytes:
    """Store an upright picture of 6 x 5 as a camera that is held in another way does."""
    undo = {
        1: lambda picture: picture,
        2: lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda picture: picture.transpose(Image.Transpose.ROTATE_180),
        4: lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda picture: picture.transpose(Image.Transpose.TRANSPOSE),
        6: lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
        7: lambda picture: picture.transpose(Image.Transpose.TRANSVERSE),
        8: lambda picture: picture.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    stored = undo(Image.fromarray(_RAMP))
    exif = stored.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    return _saved(stored, kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_orientation_says(orientation: int, kind: str) -> None:
    content = _turned(orientation, kind) if kind != "WEBP" else _turned(orientation, "PNG")
    assert read_size(content) == (6, 5)
    assert np.array_equal(np.asarray(decode(content).image), _RAMP)


def test_a_turned_photo_has_the_size_of_the_others(tmp_path: Path) -> None:
    upright = Image.fromarray(np.repeat(_RAMP[:, :, None], 3, axis=2) + np.uint8([0, 1, 2]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = _saved(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=100)
    dataset = data.load("mine", write(two_classes() | {"train/cat/9.jpg": turned}, tmp_path, "zip"))
    assert dataset.shape == (3, 5, 6)
    assert len(dataset.train) == 7


def test_damaged_exif_notes_do_not_hide_a_picture() -> None:
    content = _saved(Image.fromarray(_RAMP), "PNG", exif=b"Exif\0\0nonsense")
    assert np.array_equal(np.asarray(decode(content).image), _RAMP)


def _two_greys() -> Image.Image:
    picture = Image.new("P", (6, 5), 1)
    picture.putpalette([0, 0, 0, 200, 200, 200, 255, 0, 0])
    return picture


_GREY: dict[str, tuple[Callable[[], Image.Image], int, bool]] = {
    "1 bit": (lambda: Image.new("1", (6, 5), 1), 255, False),
    "grey": (lambda: Image.new("L", (6, 5), 77), 77, False),
    "grey with opaque alpha": (lambda: Image.new("LA", (6, 5), (77, 255)), 77, False),
    "grey that is clear": (lambda: Image.new("LA", (6, 5), (0, 0)), 255, True),
    "grey that is half clear": (lambda: Image.new("LA", (6, 5), (0, 128)), 127, True),
    "a palette whose used colours are grey": (_two_greys, 200, False),
}


@pytest.mark.parametrize("what", list(_GREY))
def test_grey_pictures_stay_grey_however_they_are_stored(what: str) -> None:
    make, level, is_transparent = _GREY[what]
    decoded = decode(_saved(make()))
    assert (decoded.image.mode, decoded.is_transparent) == ("L", is_transparent)
    assert np.asarray(decoded.image).tolist() == [[level] * 6] * 5


def test_a_grey_palette_with_a_clear_colour_is_grey_on_white() -> None:
    decoded = decode(_saved(_two_greys(), transparency=1))
    assert (decoded.image.mode, decoded.is_transparent) == ("L", True)
    assert np.unique(np.asarray(decoded.image)).tolist() == [255]


def test_black_icons_on_nothing_do_not_become_one_black_picture(tmp_path: Path) -> None:
    def icon(column: int) -> bytes:
        picture = Image.new("RGBA", (6, 5), (0, 0, 0, 0))
        picture.paste((0, 0, 0, 255), (column, 0, column + 1, 5))
        return _saved(picture)

    files = {
        f"{part}/{label}/{n}.png": icon(3 * row + n + (part == "test"))
        for row, label in enumerate(("cat", "dog"))
        for part, count in (("train", 2), ("test", 1))
        for n in range(count)
    }
    path = write(files, tmp_path, "zip")
    dataset = data.load("mine", path)
    assert len({tuple(pixels.flatten().tolist()) for pixels in dataset.train.first(9).pixels}) == 4
    assert dataset.train.first(9).pixels.max() == 255
    assert "6 images have transparent pixels, which are shown on white" in [it.message for it in dataset.warnings]
    assert inspect_dataset(path, tmp_path / "out", caps=Caps()).transparent == 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("name", ["9.png", "9.jfif", "9", "9.dat", "9.TIF"])
def test_the_content_of_a_file_decides_on_its_format(kind: str, name: str, tmp_path: Path) -> None:
    dataset = data.load("mine", write(two_classes() | {f"train/cat/{name}": image(3, kind=kind)}, tmp_path, "zip"))
    assert (len(dataset.train), dataset.unread) == (7, 0)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("L", (6, 5), level) for level in (40, 90, 200)]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = _saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.unique(np.asarray(decode(content).image)).tolist() == [40]


def _in_32_bits(kind: type) -> bytes:
    return _saved(Image.fromarray(np.ones((5, 6), dtype=kind)), "TIFF")


_UNUSABLE = {
    "nothing": (b"", "it is empty"),
    "text": (b"hello", "it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC image: convert it to JPEG or PNG"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0", "it is a AVIF image: convert it to JPEG or PNG"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "it is a JPEG 2000 image: convert it to JPEG or PNG"),
    "a head of a PNG": (image(3)[:20], "it cannot be decoded: Truncated File Read"),
    "half a JPEG": (image(3, kind="JPEG", size=(60, 50))[:-300], "it cannot be decoded: "),
    "floats": (_in_32_bits(np.float32), "its pixels are floating-point numbers, which do not say what is white"),
    "32 bits": (_in_32_bits(np.int32), "its pixels are 32-bit integers, which do not say what is white"),
    "too many pixels": (_saved(Image.new("1", (5000, 4000))), "it is 5000 x 4000, more than 16,777,216 pixels"),
}


@pytest.mark.parametrize("what", list(_UNUSABLE))
def test_the_reason_of_an_unusable_image_is_the_reason(what: str) -> None:
    content, reason = _UNUSABLE[what]
    with pytest.raises(Unusable) as caught:
        decode(content)
    assert str(caught.value).startswith(reason)


def test_16_bits_keep_white_in_every_format() -> None:
    for content in (wide(65535), _saved(Image.fromarray(np.full((5, 6), 65535, dtype=np.uint16)), "TIFF")):
        assert np.unique(np.asarray(decode(content).image)).tolist() == [255]


def test_text_that_begins_like_a_bitmap_is_not_an_image() -> None:
    assert find_format(b"BMW and other makes of cars are here") is None
    assert find_format(image(3, kind="BMP")[:32]) == "BMP"
