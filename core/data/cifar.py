"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the official files, or the same images as an ImageFolder.

The official files are pickles. Each is unpickled only after its checksum has shown that it is the official one; the
checksums are torchvision's, which also downloads the files where no path is given.
"""

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from core.data import images
from core.data.class_folders import PART_NAMES
from core.data.file_tree import Entry, Tar
from core.data.images import LeaveOut
from core.data.parts import Parts
from core.data.safe_zip import show
from core.data.split import Split
from core.schema.catalog import DATASETS, DOWNLOADS
from core.schema.errors import BadDataset

Name = Literal["cifar10", "cifar100"]

_TITLES: Mapping[Name, str] = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_LARGEST_FILE = 256 * 2**20
_LOOKED_AT = 10
"""Files at the start of an archive that tell what it is."""


def load(name: Name, path: Path | None, *, leave_out: LeaveOut | None = None) -> Parts:
    """Load the training part, the test part and the class names.

    path: the official archive, the folder in it, a folder that holds either or is empty, or the same images as an
    ImageFolder folder or archive. leave_out: as in `images.load`; the official files are complete or refused.
    Raises BadDataset.
    """
    path = path and path.expanduser()
    if path is None:
        return _read_folder(name, _fetch(name, (DOWNLOADS / name).expanduser()))
    if not path.exists():
        raise BadDataset(
            f"{path} does not exist",
            hint="check the path; to download the data set there, create the folder first",
            field="dataset",
        )
    if path.is_file():
        if _is_official(name, path):
            return _read_archive(name, path)
        return _checked(name, images.load(path, leave_out=leave_out))
    kind = _kind(name)
    for folder in (path, path / kind.base_folder):
        if any((folder / file).is_file() for file in _checksums(name)):
            return _read_folder(name, folder)
    if (path / kind.filename).is_file():
        return _read_archive(name, path / kind.filename)
    if _holds_images(path):
        return _checked(name, images.load(path, leave_out=leave_out))
    return _read_folder(name, _fetch(name, path))


def _kind(name: Name) -> Any:
    import torchvision.datasets  # slow to import, and only needed here

    return {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]


def _checksums(name: Name) -> dict[str, str]:
    """Return the MD5 of each official file, by its name."""
    kind = _kind(name)
    return {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}


def _is_official(name: Name, path: Path) -> bool:
    """Whether a file is the official archive, complete or not.

    Raises BadDataset where it is that of the other set, or another version.
    """
    files: list[str] = []
    # What is damaged further on is told when it is read.
    with suppress(tarfile.TarError, OSError, EOFError, zlib.error), tarfile.open(path, "r|*") as archive:
        members = islice((member for member in archive if member.isreg()), _LOOKED_AT)
        files.extend(PurePosixPath(member.name).name for member in members)
    for other, title in _TITLES.items():
        names = set(_checksums(other))
        if any(file in names for file in files) and other != name:
            raise BadDataset(
                f"{show(path.name)} holds {title}, not {_TITLES[name]}",
                hint=f"use it with --dataset {other}",
                field="dataset",
            )
        if any(PurePosixPath(file).stem in names and file not in names for file in files):
            raise BadDataset(
                f"{show(path.name)} is the version of {title} for another program",
                hint=f"download the version for Python, {_kind(other).filename}",
                field="dataset",
            )
    return any(file in _checksums(name) for file in files)


def _read_archive(name: Name, path: Path) -> Parts:
    """Read the official files out of an archive, which is not unpacked."""
    names = set(_checksums(name))

    def is_wanted(entry: Entry) -> bool:
        return PurePosixPath(entry.name).name in names and entry.size <= _LARGEST_FILE

    try:
        found = {PurePosixPath(entry.name).name: content for entry, content in Tar(path).read(is_wanted)}
    except BadDataset as error:
        raise _damaged(name, path, error.message) from error
    return _read(name, path, found.get)


def _read_folder(name: Name, folder: Path) -> Parts:
    def read(file: str) -> bytes | None:
        try:
            return (folder / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadDataset(
                f"cannot read {folder / file}: {error.strerror}", hint="check its permissions", field="dataset"
            ) from error

    return _read(name, folder, read)


def _read(name: Name, path: Path, read: Callable[[str], bytes | None]) -> Parts:
    """Check the official files and unpickle them. read: returns the content of a file; None for one that is missing."""
    entries: dict[str, Any] = {}
    for file, checksum in _checksums(name).items():
        content = read(file)
        if content is None:
            raise _damaged(name, path, f"{file} is missing")
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
            raise _damaged(name, path, f"the checksum of {file} is not that of the official file")
        entries[file] = pickle.loads(content, encoding="latin1")  # noqa: S301  # its checksum is the official file's
    kind = _kind(name)
    train, test = ([entries[file] for file, _ in files] for files in (kind.train_list, kind.test_list))
    return Parts(_split(train), tuple(entries[kind.meta["filename"]][kind.meta["key"]]), _split(test))


def _split(entries: list[dict[str, Any]]) -> Split:
    pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    labels = [label for entry in entries for label in entry["labels" if "labels" in entry else "fine_labels"]]
    return Split(torch.from_numpy(pixels), torch.tensor(labels))


def _damaged(name: Name, path: Path, reason: str) -> BadDataset:
    return BadDataset(
        f"{show(path.name)} is damaged: {reason}",
        hint=f"download {_kind(name).filename} again, and give it as --data",
        field="dataset",
    )


def download(name: Name) -> Path:
    """Download a data set to the folder where `load` finds it without a path, unless it is there. Raises BadDataset."""
    folder = (DOWNLOADS / name).expanduser()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The folder appears when it is complete: other processes look for it.
        with TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as partial:
            _fetch(name, Path(partial, name))
            with suppress(OSError):  # another process was first
                Path(partial, name).rename(folder)
    return folder


def _fetch(name: Name, folder: Path) -> Path:
    """Download the official files into a folder, unless they are there, and return the folder that holds them."""
    kind = _kind(name)
    try:
        kind(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise BadDataset(
            f"cannot download {_TITLES[name]} into {folder}: {error}",
            hint=f"give this machine access to the internet once, or give {kind.filename} as --data",
            field="dataset",
        ) from error
    return folder / kind.base_folder


def _holds_images(path: Path) -> bool:
    """Whether a folder has the folder of a part in it or one level below."""
    return any(
        folder.is_dir() and folder.name.casefold() in PART_NAMES
        for pattern in ("*", "*/*")
        for folder in path.glob(pattern)
    )


def _checked(name: Name, parts: Parts) -> Parts:
    entry = DATASETS[name]
    if parts.train.shape != entry.shape or len(parts.classes) != entry.classes:
        channels, height, width = parts.train.shape
        raise BadDataset(
            f"this is not {_TITLES[name]}: {channels} x {height} x {width} images in {len(parts.classes)} classes, not "
            f"{' x '.join(map(str, entry.shape))} in {entry.classes}",
            hint="give your data set a name of its own with --dataset",
            field="dataset",
        )
    return parts
