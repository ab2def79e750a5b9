"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision, which fetches them once and checks them."""

from pathlib import Path
from typing import Literal

import torch

from core.data import image_folder
from core.data.class_folders import PARTS
from core.data.image_folder import LeaveOut
from core.data.split import Split
from core.schema.catalog import DATASETS
from core.schema.errors import BadDataset

_CACHE = Path("~/.cache/temper")
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def load(
    name: Literal["cifar10", "cifar100"], path: Path | None, *, leave_out: LeaveOut | None = None
) -> tuple[Split, Split, tuple[str, ...]]:
    """Load the training part, the test part and the class names. Raises BadDataset when it cannot be had.

    path: the folder that torchvision keeps it in or is to keep it in, or the same images as an ImageFolder folder or
    archive. leave_out: told of each image of those that cannot be used; torchvision's files are whole or refused.
    """
    path = path and path.expanduser()
    if path and not path.exists():
        raise BadDataset(
            f"there is nothing at {path}",
            hint="check the path; for an empty folder to fetch it into, make that folder first",
            field="dataset",
        )
    if path and _holds_images(path):
        return _checked(name, *image_folder.load(path, leave_out=leave_out))
    import torchvision.datasets  # slow to import, and only needed here

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = path or (_CACHE / name).expanduser()
    try:
        train, test = (kind(str(folder), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise BadDataset(
            f"cannot fetch {_TITLES[name]} into {folder}: {error}",
            hint=f"give this machine access to the internet once, or unpack {kind.filename} there",
            field="dataset",
        ) from error
    return _split(train), _split(test), tuple(train.classes)


def _holds_images(path: Path) -> bool:
    """Whether a path is an archive, or a folder with a part of an ImageFolder in it or one below."""
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
            hint="give a data set of your own a name of its own with --dataset",
            field="dataset",
        )
    return train, test, classes


def _split(part) -> Split:  # type: ignore[no-untyped-def]  # torchvision's class, imported late
    pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor(part.targets))
