"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision, which downloads them once and verifies them."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from core.data import image_folder
from core.data.class_folders import PARTS
from core.data.image_folder import LeaveOut
from core.data.split import Split
from core.schema.catalog import DATASETS, DOWNLOADS
from core.schema.errors import BadDataset

_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

Name = Literal["cifar10", "cifar100"]


def load(name: Name, path: Path | None, *, leave_out: LeaveOut | None = None) -> tuple[Split, Split, tuple[str, ...]]:
    """Load the training part, the test part and the class names.

    path: torchvision's folder, which may be empty, or the same images as an ImageFolder folder or archive. leave_out:
    as in `image_folder.load`; torchvision's own files are complete or refused. Raises BadDataset.
    """
    path = path and path.expanduser()
    if path and not path.exists():
        raise BadDataset(
            f"{path} does not exist",
            hint="check the path; to download the data set there, create the folder first",
            field="dataset",
        )
    if path and _holds_images(path):
        return _checked(name, *image_folder.load(path, leave_out=leave_out))
    train, test = _fetch(name, path or (DOWNLOADS / name).expanduser())
    return _split(train), _split(test), tuple(train.classes)


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


def _fetch(name: Name, folder: Path) -> Any:
    """Return torchvision's training part and test part in a folder, and download them where they are missing."""
    import torchvision.datasets  # slow to import, and only needed here

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        return tuple(kind(str(folder), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise BadDataset(
            f"cannot download {_TITLES[name]} into {folder}: {error}",
            hint=f"give this machine access to the internet once, or unpack {kind.filename} into that folder",
            field="dataset",
        ) from error


def _holds_images(path: Path) -> bool:
    """Whether a path is an archive, or a folder with `train` or `test` in it or one level below."""
    if path.is_file():
        return True
    return any(found.is_dir() for part in PARTS for pattern in (part, f"*/{part}") for found in path.glob(pattern))


def _checked(name: str, train: Split, test: Split, classes: tuple[str, ...]) -> tuple[Split, Split, tuple[str, ...]]:
    entry = DATASETS[name]
    if train.shape != entry.shape or len(classes) != entry.classes:
        channels, height, width = train.shape
        raise BadDataset(
            f"this is not {_TITLES[name]}: {channels} x {height} x {width} images in {len(classes)} classes, not "
            f"{' x '.join(map(str, entry.shape))} in {entry.classes}",
            hint="give your data set a name of its own with --dataset",
            field="dataset",
        )
    return train, test, classes


def _split(part) -> Split:  # type: ignore[no-untyped-def]  # torchvision's class, imported late
    pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor(part.targets))
