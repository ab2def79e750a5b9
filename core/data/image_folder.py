"""ImageFolder data: `train/<class>/<image>` and `test/<class>/<image>`, in a folder or in a zip or tar archive.

Archives are read member by member and never unpacked, so no member can be written outside a folder. All images must
have the same size. Classes are numbered in alphabetical order. An image that cannot be used raises an error, unless the
caller asks to leave such images out; then the most frequent size is the right one.
"""

import io
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from core.data.class_folders import PARTS, SUFFIXES, name_classes
from core.data.image_decoding import FORMATS, in_bytes
from core.data.safe_zip import Archive, Caps, ends_as_archive
from core.data.split import Split
from core.schema.errors import BadDataset

_LARGEST_FILE = 64 * 2**20
_MOST_PIXELS = 2**24
# Files of the operator, as opposed to uploads, are not limited in size.
_OF_THE_OPERATOR = Caps(total_bytes=2**40)

LeaveOut = Callable[[str, str], None]
"""Called with the name of an image that is left out, and the reason."""


class Found(NamedTuple):
    """An image, or the folder of a class."""

    part: str
    label: str
    name: str
    pixels: np.ndarray | None
    """(height, width) grey or (height, width, 3) colour, uint8; None for a folder."""


def load(path: Path, *, leave_out: LeaveOut | None = None) -> tuple[Split, Split, tuple[str, ...]]:
    """Load the training part, the test part and the class names.

    leave_out: called with each image that cannot be used, which is then left out; by default the first such image
    raises an error. Raises BadDataset, which names the file.
    """
    found = _collect(path, leave_out)
    counts = {place: len(images) for place, images in found.images.items()}
    classes = name_classes(counts, ("train", "test"), path.name)
    return found.split("train", classes), found.split("test", classes), classes


def load_training_part(path: Path, *, leave_out: LeaveOut | None = None) -> tuple[Split, tuple[str, ...]]:
    """Load the training part and its class names; the data set need not have a test part. Raises BadDataset."""
    found = _collect(path, leave_out)
    counts = {place: len(images) for place, images in found.images.items()}
    classes = name_classes(counts, ("train",), path.name)
    return found.split("train", classes), classes


def look_through(
    path: Path,
    *,
    leave_out: LeaveOut | None = None,
    ignore: Callable[[str], None] | None = None,
    caps: Caps | None = None,
) -> Iterator[Found]:
    """Yield the images of both parts, and the folders of their classes, in the order of the files.

    leave_out: as in `load`. ignore: called with each file that is not an image by its name or folder. caps: limits of a
    zip archive. Raises BadDataset.
    """
    caps = caps or _OF_THE_OPERATOR
    bad = None if leave_out is None else _unlike_most(path, caps)
    first: tuple[str, tuple[int, ...]] | None = None
    for name, content in _members(path, caps):
        file = PurePosixPath(name)
        place = file.parts[-2:] if content is None else file.parts[-3:-1]
        in_place = len(place) == 2 and place[0] in PARTS and not place[1].startswith(".")
        if content is None:
            if in_place:
                yield Found(PARTS[place[0]], place[1], name, None)
            continue
        if in_place:
            # A class counts even when its folder has no image.
            yield Found(PARTS[place[0]], place[1], name, None)
        if not in_place or not _is_image(name):
            if ignore:
                ignore(name)
            continue
        try:
            if bad and name in bad:
                raise _Unusable(bad[name])
            pixels = _decode(content)
        except _Unusable as reason:
            if leave_out is None:
                raise BadDataset(
                    f"cannot read {name}: {reason}", hint="replace or remove this file", field="dataset"
                ) from reason.__cause__
            leave_out(name, str(reason))
            continue
        first = first or (name, pixels.shape[:2])
        if pixels.shape[:2] != first[1]:
            sizes = [f"{width} x {height}" for height, width in (first[1], pixels.shape[:2])]
            raise BadDataset(
                f"images differ in size: {first[0]} is {sizes[0]}, {name} is {sizes[1]}",
                hint="resize all images to one size, or set --dataset imagenet for a folder to crop them to 224 x 224",
                field="dataset",
            )
        yield Found(PARTS[place[0]], place[1], name, pixels)


def _unlike_most(path: Path, caps: Caps) -> dict[str, str]:
    """Find the images that do not have the most frequent size, from their headers, with the reason for each."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, content in _members(path, caps):
        if content is not None and _is_image(name):
            try:
                sizes[name] = _size(content)
            except _Unusable:
                continue
    if not sizes:
        return {}
    # Of two equally frequent sizes, the smaller: the result must not depend on the order of the files.
    counts = Counter(sizes.values())
    usual = min(counts, key=lambda size: (-counts[size], size))
    reason = f"it is not {usual[0]} x {usual[1]}, the size of most images"
    return {name: reason for name, size in sizes.items() if size != usual}


def _collect(path: Path, leave_out: LeaveOut | None) -> "_Collected":
    found = _Collected()
    for each in look_through(path, leave_out=leave_out):
        found.add(each)
    return found


@dataclass
class _Collected:
    """The images found so far, by part and class."""

    images: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = field(default_factory=dict)

    def add(self, found: Found) -> None:
        images = self.images.setdefault((found.part, found.label), [])
        if found.pixels is not None:
            images.append((found.name, found.pixels))

    def split(self, part: str, classes: tuple[str, ...]) -> Split:
        """Stack the images of a part, in a fixed order that mixes the classes."""
        pairs = [
            (name, pixels, label)
            for label, class_name in enumerate(classes)
            for name, pixels in sorted(self.images[part, class_name], key=lambda pair: pair[0])
        ]
        in_colour = any(pixels.ndim == 3 for images in self.images.values() for _, pixels in images)
        stacked = np.stack([_channels(pixels, in_colour=in_colour) for _, pixels, _ in pairs])
        order = np.random.RandomState(0).permutation(len(pairs))
        labels = np.array([label for _, _, label in pairs], dtype=np.int64)
        return Split(torch.from_numpy(np.ascontiguousarray(stacked[order])), torch.from_numpy(labels[order]))


def _channels(pixels: np.ndarray, *, in_colour: bool) -> np.ndarray:
    if pixels.ndim == 3:
        return pixels.transpose(2, 0, 1)
    return np.repeat(pixels[None], 3, axis=0) if in_colour else pixels[None]


class _Unusable(Exception):
    """An image cannot be used; the message is the reason."""


def _size(content: bytes) -> tuple[int, int]:
    """Return the width and height of an image from its header. Raises _Unusable."""
    with _opened(content) as image:
        return image.size


def _decode(content: bytes) -> np.ndarray:
    """Decode an image to (height, width) grey or (height, width, 3) colour, uint8. Raises _Unusable."""
    with _opened(content) as image:
        return np.asarray(in_bytes(image))


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image of a supported format and size. Raises _Unusable, also for errors inside the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > _MOST_PIXELS:
                    raise _Unusable(f"it is {width} x {height}: too large, or a decompression bomb")
                if ends_as_archive(content):
                    raise _Unusable("it is an archive as well as an image")
                yield image
    except UnidentifiedImageError as error:
        raise _Unusable("it is not a JPEG, PNG or WebP image") from error
    except MemoryError as error:
        raise _Unusable("it does not fit into memory") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise _Unusable(str(error) or type(error).__name__) from error


def _is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _members(path: Path, caps: Caps) -> Iterator[tuple[str, bytes | None]]:
    """Yield the files (name, content) and folders (name, None) of a folder or archive."""
    if path.is_dir():
        yield from _folder_members(path)
    elif zipfile.is_zipfile(path):
        yield from _zip_members(path, caps)
    elif path.is_file():
        yield from _tar_members(path)
    else:
        raise BadDataset(f"{path} does not exist", hint="check the path of the data set", field="dataset")


def _folder_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    for entry in sorted(path.rglob("*")):
        name = entry.relative_to(path).as_posix()
        if entry.is_dir():
            yield name, None
        elif entry.is_file():
            yield name, entry.read_bytes() if _is_wanted(name, entry.stat().st_size) else b""


def _zip_members(path: Path, caps: Caps) -> Iterator[tuple[str, bytes | None]]:
    with Archive(path, caps) as archive:
        for member in archive.members:
            if member.is_folder:
                yield member.name, None
            else:
                yield member.name, archive.read(member) if _is_wanted(member.name, member.size) else b""


def _tar_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for entry in archive:
                if entry.isdir():
                    yield entry.name, None
                elif file := archive.extractfile(entry) if entry.isreg() else None:
                    yield entry.name, file.read() if _is_wanted(entry.name, entry.size) else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _damaged(path, error) from error


def _is_wanted(name: str, size: int) -> bool:
    if not _is_image(name):
        return False
    if size > _LARGEST_FILE:
        raise BadDataset(
            f"{name} is {size / 2**20:.0f} MiB", hint="image files may have at most 64 MiB", field="dataset"
        )
    return True


def _damaged(path: Path, error: Exception) -> BadDataset:
    return BadDataset(
        f"cannot read {path.name}: {error}",
        hint="give a folder, or a complete zip or tar archive",
        field="dataset",
    )
