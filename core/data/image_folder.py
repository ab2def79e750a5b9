"""ImageFolder data: `train/<class>/<image>` and `test/<class>/<image>`, in a folder or in a zip or tar archive.

Archives are read member by member and never unpacked, so no name in one can reach a path outside. Every image must have
the same size. Classes are numbered in the order of their names.
"""

import io
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from core.data.class_folders import PARTS, SUFFIXES, name_classes
from core.data.split import Split
from core.errors import BadDataset

_FORMATS = ("JPEG", "PNG", "WEBP")
_LARGEST_FILE = 64 * 2**20


def load(path: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Load the training part, the test part and the class names. Raises BadDataset naming the file at fault."""
    found = _collect(path)
    counts = {place: len(images) for place, images in found.images.items()}
    classes = name_classes(counts, ("train", "test"), path.name)
    return found.split("train", classes), found.split("test", classes), classes


def load_training_part(path: Path) -> tuple[Split, tuple[str, ...]]:
    """Load the training part and its class names, of a data set that may have no test part. Raises BadDataset."""
    found = _collect(path)
    counts = {place: len(images) for place, images in found.images.items()}
    classes = name_classes(counts, ("train",), path.name)
    return found.split("train", classes), classes


def _collect(path: Path) -> "_Collected":
    found = _Collected()
    for name, content in _members(path):
        found.add(name, content)
    return found


@dataclass
class _Collected:
    """The images seen so far, by part and class."""

    images: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    first: tuple[str, tuple[int, ...]] | None = None

    def add(self, name: str, content: bytes | None) -> None:
        """Take in a file, or a folder where there is no content."""
        path = PurePosixPath(name)
        place = path.parts[-2:] if content is None else path.parts[-3:-1]
        if len(place) < 2 or place[0] not in PARTS or place[1].startswith("."):
            return
        images = self.images.setdefault((PARTS[place[0]], place[1]), [])
        if content is None or path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            return
        pixels = _decode(name, content)
        self.first = self.first or (name, pixels.shape[:2])
        if pixels.shape[:2] != self.first[1]:
            sizes = [f"{width} x {height}" for height, width in (self.first[1], pixels.shape[:2])]
            raise BadDataset(
                f"images differ in size: {self.first[0]} is {sizes[0]}, {name} is {sizes[1]}",
                hint="resize all images to one size, or call a folder imagenet to have them cropped to 224 x 224",
                field="dataset",
            )
        images.append((name, pixels))

    def split(self, part: str, classes: tuple[str, ...]) -> Split:
        """Stack the images of a part in an order that is fixed and mixes the classes."""
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


def _decode(name: str, content: bytes) -> np.ndarray:
    """Decode one image to (height, width) grey or (height, width, 3) colour bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = "it is not a JPEG, PNG or WebP image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadDataset(
            f"cannot read {name}: {reason}", hint="replace or remove this file", field="dataset"
        ) from error


def _members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Go through the files (name, content) and folders (name, None) of a folder or archive."""
    if path.is_dir():
        yield from _folder_members(path)
    elif zipfile.is_zipfile(path):
        yield from _zip_members(path)
    elif path.is_file():
        yield from _tar_members(path)
    else:
        raise BadDataset(f"there is nothing at {path}", hint="check the path of the data set", field="dataset")


def _folder_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    for entry in sorted(path.rglob("*")):
        name = entry.relative_to(path).as_posix()
        if entry.is_dir():
            yield name, None
        elif entry.is_file():
            yield name, entry.read_bytes() if _is_wanted(name, entry.stat().st_size) else b""


def _zip_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    yield entry.filename, None
                else:
                    yield entry.filename, archive.read(entry) if _is_wanted(entry.filename, entry.file_size) else b""
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise _damaged(path, error) from error


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
    if PurePosixPath(name).suffix.lower() not in SUFFIXES:
        return False
    if size > _LARGEST_FILE:
        raise BadDataset(f"{name} is {size / 2**20:.0f} MiB", hint="images may have up to 64 MiB", field="dataset")
    return True


def _damaged(path: Path, error: Exception) -> BadDataset:
    return BadDataset(
        f"cannot read {path.name}: {error}",
        hint="give a folder, or a zip or tar archive that is whole",
        field="dataset",
    )
