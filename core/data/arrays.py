"""Labelled images in a NumPy file, the usual format for pseudo-labelled or generated images.

The file is a `.npz` archive with `images` (examples, height, width, channels) uint8 and `labels` (examples,) integers;
the names `image` and `label` are accepted too. Nothing is ever unpickled.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from core.data.split import Split
from core.schema.errors import BadDataset

_REMEDY = (
    "write the file with numpy.savez(path, images=images, labels=labels): images uint8 of examples x height x width x "
    "channels, labels integers"
)


def _why_no_archive(path: Path) -> str:
    try:
        with path.open("rb"):
            return "it is not a .npz archive"
    except FileNotFoundError:
        return "the file does not exist"
    except OSError as error:
        return f"{error.strerror}: this user must be able to read it"


def is_arrays(path: Path) -> bool:
    """Return whether a path has the suffix of a file of arrays, one that is refused included."""
    return path.suffix in {".npz", ".npy", ".pickle", ".pkl"}


def load(path: Path) -> Split:
    """Load the images and labels. Raises BadDataset for any other content, pickled objects included."""
    if not zipfile.is_zipfile(path):
        raise _bad(path, _why_no_archive(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = (_array(archive, path, name) for name in ("images", "labels"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _bad(path, str(error)) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise _bad(path, f"images are {images.dtype} of shape {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise _bad(path, f"{len(images)} images, but labels are {labels.dtype} of shape {labels.shape}")
    if not images.size:
        raise _bad(path, f"there are no images: they are of shape {images.shape}")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Split(pixels, torch.from_numpy(labels.astype(np.int64)))


def _array(archive: np.lib.npyio.NpzFile, path: Path, name: str) -> np.ndarray:
    found = next((known for known in (name, name.removesuffix("s")) if known in archive), None)
    if found is None:
        raise _bad(path, f"it has no array named {name}, only {', '.join(archive) or 'nothing'}")
    return archive[found]


def _bad(path: Path, reason: str) -> BadDataset:
    return BadDataset(f"cannot read {path.name}: {reason}", hint=_REMEDY, field="extra_dataset")
