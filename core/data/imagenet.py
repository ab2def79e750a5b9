"""ImageNet (ILSVRC 2012) and folders like it: large images of mixed size, streamed from `train/<class>/<image>`.

Preprocessing is the usual one: a random resized crop and a flip for training; for evaluation, the shorter side is
resized to 256 pixels (bilinear or, for some models, bicubic) and the central 224 x 224 are cropped. The order of both
parts is fixed and mixes the classes, so that "the first 1000 test points" are the same everywhere.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from core.data.class_folders import PARTS, SUFFIXES, name_classes
from core.data.stream import Stream
from core.schema.errors import BadDataset
from core.schema.spec import Interpolation

_Files = dict[tuple[str, str], list[tuple[str, int]]]
"""Name and size in bytes of each image, by part and class."""


def load(
    folder: Path, *, workers: int | None = None, interpolation: Interpolation = "bilinear"
) -> tuple[Stream, Stream, tuple[str, ...]]:
    """List the training part, the test part and the class names. Raises BadDataset, also for an empty image file."""
    files = _find(folder)
    classes = _classes(files, ("train", "test"), folder)
    parts = (_stream(folder, files, part, classes, workers) for part in ("train", "test"))
    train, test = (replace(part, interpolation=interpolation) for part in parts)
    return train, test, classes


def load_training_part(folder: Path, *, workers: int | None = None) -> tuple[Stream, tuple[str, ...]]:
    """List the training part and its class names; the folder need not have a test part. Raises BadDataset."""
    files = _find(folder)
    classes = _classes(files, ("train",), folder)
    return _stream(folder, files, "train", classes, workers), classes


def _classes(files: _Files, parts: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    return name_classes({place: len(images) for place, images in files.items()}, parts, folder.name)


def _find(folder: Path) -> _Files:
    if not folder.is_dir():
        there = folder.exists()
        raise BadDataset(
            f"{folder} is not a folder" if there else f"{folder} does not exist",
            hint="unpack it: large images are streamed from their own files" if there else "check the path",
            field="dataset",
        )
    files: _Files = {}
    for part_folder in _folders(folder):
        if part := PARTS.get(part_folder.name):
            for class_folder in _folders(part_folder):
                images = files.setdefault((part, class_folder.name), [])
                images.extend(_images(class_folder, f"{part_folder.name}/{class_folder.name}"))
    return files


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, name: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if PurePosixPath(entry.name).suffix.lower() in SUFFIXES and not entry.name.startswith("."):
                size = entry.stat().st_size
                if size == 0:
                    raise BadDataset(
                        f"{name}/{entry.name} is empty", hint="replace or remove this file", field="dataset"
                    )
                yield f"{name}/{entry.name}", size


def _stream(folder: Path, files: _Files, part: str, classes: tuple[str, ...], workers: int | None) -> Stream:
    found = [
        (os.fsencode(name), size, label)
        for label, class_name in enumerate(classes)
        for name, size in sorted(files[part, class_name])
    ]
    names, sizes, labels = zip(*found, strict=True)
    # numpy guarantees the stream of RandomState in every version.
    order = np.random.RandomState(0).permutation(len(found))
    return Stream(
        folder,
        np.array(names)[order],
        np.array(sizes, dtype=np.int64)[order],
        torch.tensor(labels)[torch.from_numpy(order)],
        workers=workers,
    )
