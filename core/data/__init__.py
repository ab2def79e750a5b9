"""Data sets: images in [0, 1] and labels, small ones as bytes on the device, large ones streamed from their files.

A data set is a name in `core.schema.catalog.DATASETS`, or an ImageFolder folder or archive at a path. The order of
both parts is fixed, so that "the first 300 test points" means the same everywhere. A new one is a file here and an
entry there.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from core.data import arrays, cifar, digits, extra_data, image_folder, imagenet
from core.data.image_folder import LeaveOut
from core.data.labelled_images import LabelledImages
from core.data.stream import Stream
from core.schema.catalog import DATASETS
from core.schema.errors import BadDataset, BadInput
from core.schema.spec import Interpolation
from core.schema.suggestions import did_you_mean


@dataclass(frozen=True)
class Dataset:
    """A training and a test part that share their classes."""

    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    """The name behind each label."""
    extra: LabelledImages | None = None
    """A second labelled set of the same classes, for training."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.train.shape

    def sha256(self) -> str:
        """Hash the data: of sets in memory all images and labels, of streamed ones the names and sizes of the files."""
        digest = hashlib.sha256()
        for part in (self.train, self.test, self.extra):
            if part is not None:
                part.update_hash(digest)
        return digest.hexdigest()


def load(
    name: str,
    path: Path | None = None,
    *,
    extra: Path | None = None,
    workers: int | None = None,
    interpolation: Interpolation = "bilinear",
    leave_out: LeaveOut | None = None,
) -> Dataset:
    """Load a data set by its name, or from a path for one that the catalogue does not know.

    For cifar10 and cifar100 the path is the folder that torchvision keeps it in, or the images as an ImageFolder; for
    imagenet the folder that holds `train/` and `val/`. extra: a second labelled set, as `extra_data.load` reads it.
    workers: processes that read a streamed set, by default one per core. interpolation: how its images are resized for
    evaluation. leave_out: told of each image of a folder or archive that cannot be used, and why, which then is no part
    of the data; by default the first such image is an error. Streamed sets are not looked through, and take none.

    Raises BadInput for a name that needs a path and has none, or the other way round, BadDataset when images cannot be
    read, and DoesNotFit for extra data of another shape or other classes.
    """
    match name:
        case "digits" if path is not None:
            raise BadInput(
                "digits come with scikit-learn, not from a path",
                hint=f"leave out --data, or give {path.name} another name with --dataset",
                field="dataset",
            )
        case "digits":
            dataset = Dataset(*digits.load())
        case "cifar10" | "cifar100":
            dataset = Dataset(*cifar.load(name, path, leave_out=leave_out))
        case _ if path is None:
            raise _needs_path(name)
        case _ if arrays.is_arrays(path):
            raise BadDataset(
                f"{path.name} holds no test part", hint="train on it beside another set, as extra data", field="dataset"
            )
        case "imagenet":
            dataset = Dataset(*imagenet.load(path, workers=workers, interpolation=interpolation))
        case _:
            dataset = Dataset(*image_folder.load(path, leave_out=leave_out))
    if extra is not None:
        second = extra_data.load(extra, like=dataset.train, classes=dataset.classes, leave_out=leave_out)
        dataset = replace(dataset, extra=second)
    if leave_out and isinstance(dataset.train, Stream):
        raise BadInput(
            f"images of {name} are read as they are needed: which of them cannot be used is not known before",
            hint="run without --leave-out-unusable, and remove or replace the file that the run then names",
            field="dataset",
        )
    return dataset


def _needs_path(name: str) -> BadInput:
    if name in DATASETS:
        return BadInput(
            f"{name} cannot be fetched: it has to be on this machine",
            hint="give the folder that holds its train/ and val/ with --data",
            field="dataset",
        )
    return BadInput(
        f"there is no data set {name!r}",
        hint=f"{did_you_mean(name, DATASETS)}, or give a folder or archive with --data",
        field="dataset",
    )
