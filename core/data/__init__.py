"""Data sets: images in [0, 1] and labels, small ones as bytes on the device, large ones streamed from their files.

A data set is a name in `core.schema.catalog.DATASETS`, or an ImageFolder folder or archive at a path. The order of
both parts is fixed, so that "the first 300 test points" are the same everywhere. A new data set is a file here and an
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
    """A training and a test part with the same classes."""

    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    """The name of each class, by its label."""
    extra: LabelledImages | None = None
    """Extra data for training, with the same classes; None for none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.train.shape

    def sha256(self) -> str:
        """Return the sha256 of all images and labels; of streamed ones, of the names, sizes and labels of the files."""
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
    """Load a data set by its name, or from a path if the catalogue does not know the name.

    For cifar10 and cifar100 the path is torchvision's folder, or the images as an ImageFolder; for imagenet the folder
    with `train/` and `val/`. extra: a second labelled set, as `extra_data.load` reads it. workers: processes that read
    a streamed set, by default one per core. interpolation: how the images of a streamed set are resized for evaluation.
    leave_out: called with each image that cannot be used and the reason, and the image is left out; by default the
    first such image raises an error. Streamed sets do not support it, since their images are not read in advance.

    Raises BadInput for a missing or superfluous path, BadDataset when images cannot be read, and DoesNotFit for extra
    data of another shape or with other classes.
    """
    match name:
        case "digits" if path is not None:
            raise BadInput(
                "the digits are part of scikit-learn and take no path",
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
                f"{path.name} has no test part", hint="use it as extra data, beside another data set", field="dataset"
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
            f"images of {name} are read during the run, so unusable ones cannot be left out in advance",
            hint="run without --leave-out-unusable, and remove or replace the file that the run names",
            field="dataset",
        )
    return dataset


def _needs_path(name: str) -> BadInput:
    if name in DATASETS:
        return BadInput(
            f"{name} cannot be downloaded: it must be on this machine",
            hint="give the folder with its train/ and val/ as --data",
            field="dataset",
        )
    return BadInput(
        f"there is no data set {name!r}",
        hint=f"{did_you_mean(name, DATASETS)}, or give a folder or archive with --data",
        field="dataset",
    )
