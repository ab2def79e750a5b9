"""The official files of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261; Zenodo 2535967).

A folder has NAME.npy for each corruption, (5 x points, height, width, channels) uint8, with one block of the whole test
part for each severity, in the order of the official test file; and labels.npy, with the labels five times. CIFAR-100-C
has the same format. The files are mapped into memory, and nothing is unpickled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.schema.errors import BadInput
from core.schema.threats import SEVERITIES

_FIELD = "corruptions"
_DOWNLOAD = "download CIFAR-10-C.tar again from Zenodo, record 2535967, unpack it, and give the folder CIFAR-10-C"
# Brightness changes an image least: it shows which image is which.
_PROBE = "brightness"
_PROBED = 100
"""Points whose images show whether the order is that of the files."""
_RECOGNISED = 0.95
"""Share of them that must be nearest to their own image; a data set may be a copy with the losses of JPEG."""


@dataclass(frozen=True)
class CorruptedFiles:
    """Corrupted images in the order of the test part."""

    folder: Path
    labels: Tensor
    """(points,) int64: the labels of the test part."""
    _arrays: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path, names: Iterable[str]) -> "CorruptedFiles":
        """Open the files of some corruptions, of labels, and of brightness, by which the order is checked.

        Raises BadInput, with all that is missing or wrong.
        """
        folder = folder.expanduser()
        if not folder.is_dir():
            raise BadInput(
                f"{folder} is not a folder",
                hint="give the folder that has labels.npy and one file for each corruption",
                field=_FIELD,
            )
        wanted = list(dict.fromkeys(["labels", *names, _PROBE]))
        missing = [f"{name}.npy" for name in wanted if not (folder / f"{name}.npy").is_file()]
        if missing:
            raise BadInput(
                f"{folder} lacks {', '.join(missing)}",
                hint=f"{_DOWNLOAD}; or leave these corruptions out"
                if set(missing).isdisjoint({"labels.npy", f"{_PROBE}.npy"})
                else _DOWNLOAD,
                field=_FIELD,
            )
        arrays = {name: _map(folder / f"{name}.npy") for name in wanted}
        labels = _labels(folder, arrays.pop("labels"))
        shape = arrays[_PROBE].shape
        wrong = [
            f"{name}.npy has {array.dtype} of shape {array.shape}"
            for name, array in arrays.items()
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape != (len(SEVERITIES) * len(labels), *shape[1:])
        ]
        if wrong:
            raise BadInput(
                f"files in {folder} do not have five images for each of the {len(labels)} labels: {'; '.join(wrong)}",
                hint=_DOWNLOAD,
                field=_FIELD,
            )
        return cls(folder, labels, arrays)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        height, width, channels = self._arrays[_PROBE].shape[1:]
        return channels, height, width

    def check_order(self, labels: Tensor, images: Tensor) -> None:
        """Raise BadInput unless a test part has the images and the order of these files.

        labels (points,), images (points, channels, height, width) in [0, 1]: the whole test part. Equal labels are
        necessary; that the order is the same within a class, too, shows a sample of points, whose images of the weakest
        brightness must be nearest to the points' own images.
        """
        if tuple(images.shape[1:]) != self.shape or len(labels) != len(self.labels):
            raise self._other(
                f"has {len(labels)} images of {' x '.join(map(str, images.shape[1:]))}, but the files are for "
                f"{len(self.labels)} of {' x '.join(map(str, self.shape))}"
            )
        differ = (labels.cpu() != self.labels).nonzero().flatten()
        if len(differ):
            point = int(differ[0])
            raise self._other(
                f"has the label {int(labels[point])} at point {point}, where labels.npy has {int(self.labels[point])}"
            )
        points = torch.linspace(0, len(labels) - 1, min(_PROBED, len(labels))).round().long().unique()
        theirs = _shade(self.images(_PROBE, 1, points).to(images))
        ours = _shade(images[points.to(images.device)])
        nearest = torch.cdist(theirs, ours).argmin(1).cpu()
        # Where the set has an image twice, either is right.
        same = (ours[nearest.to(ours.device)] == ours).all(1).cpu()
        unknown = points[~same]
        if len(unknown) > (1 - _RECOGNISED) * len(points):
            raise self._other(
                f"has other images at {len(unknown)} of {len(points)} points that were compared, such as point "
                f"{int(unknown[0])}"
            )

    def images(self, name: str, severity: int, indices: Tensor) -> Tensor:
        """Read the images of some points, (n, channels, height, width) in [0, 1], in torch's default dtype.

        name: one of the corruptions that were opened; severity: 1 to 5; indices (n,): of points of the test part.
        """
        rows = (severity - 1) * len(self.labels) + indices.cpu().numpy()
        pixels = torch.from_numpy(np.ascontiguousarray(self._arrays[name][rows].transpose(0, 3, 1, 2)))
        return pixels.to(torch.get_default_dtype()) / 255

    def _other(self, difference: str) -> BadInput:
        return BadInput(
            f"the test part {difference}: the files in {self.folder} are for another test set or order",
            hint="use CIFAR-10 as torchvision loads it, or have the corruptions made from your images",
            field=_FIELD,
        )


def _map(path: Path) -> np.ndarray:
    try:
        # Unlike np.load, this reads no archive and no pickled objects whatever the file holds.
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"cannot read {path}: {error}", hint=_DOWNLOAD, field=_FIELD) from error


def _labels(folder: Path, array: np.ndarray) -> Tensor:
    """Check the labels of all severities, and give those of one."""
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not len(array) or len(array) % len(SEVERITIES):
        found = f"has {array.dtype} of shape {array.shape}, not the same integers for each of five severities"
    else:
        blocks = torch.from_numpy(array.astype(np.int64)).reshape(len(SEVERITIES), -1)
        if bool((blocks == blocks[0]).all()):
            return blocks[0]
        found = "has other labels for one severity than for another"
    raise BadInput(f"{folder / 'labels.npy'} {found}", hint=_DOWNLOAD, field=_FIELD)


def _shade(images: Tensor) -> Tensor:
    """Give the differences of each value from the image's mean, (points, values)."""
    flat = images.flatten(1)
    return flat - flat.mean(1, keepdim=True)
