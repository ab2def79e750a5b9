"""Data sets: images in [0, 1] and labels, small enough to live on the device as bytes.

A data set is a name in `core.catalog.DATASETS`, or an ImageFolder folder or archive at a path. The order of both parts
is fixed, so that "the first 300 test points" means the same everywhere. A new one is a file here and an entry there.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from core.catalog import DATASETS
from core.data import cifar10, digits, image_folder
from core.data.split import Split
from core.errors import BadInput
from core.spec import did_you_mean


@dataclass(frozen=True)
class Dataset:
    """A training and a test part that share their classes."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    """The name behind each label."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.train.shape

    def sha256(self) -> str:
        """Hash all images and labels, in order: the same data gives the same hash, wherever it came from."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(repr((tuple(split.pixels.shape), split.white)).encode())
            digest.update(split.pixels.numpy().tobytes())
            digest.update(split.labels.numpy().tobytes())
        return digest.hexdigest()


def load(name: str, path: Path | None = None) -> Dataset:
    """Load a data set by its name, or from a path for one that the catalogue does not know.

    For cifar10 the path is the folder that torchvision keeps it in. Raises BadInput for an unknown name without a path,
    and BadDataset when the images cannot be read.
    """
    match name:
        case "digits" if path is not None:
            raise BadInput(
                "digits come with scikit-learn, not from a path",
                hint=f"leave out --data, or give {path.name} another name with --dataset",
                field="dataset",
            )
        case "digits":
            return Dataset(*digits.load())
        case "cifar10":
            return Dataset(*cifar10.load(path))
    if path is None:
        raise BadInput(
            f"there is no data set {name!r}",
            hint=f"{did_you_mean(name, DATASETS)}, or give a folder or archive with --data",
            field="dataset",
        )
    return Dataset(*image_folder.load(path))
