"""ImageNet (ILSVRC 2012) and folders like it: large images of mixed size, streamed from `train/<class>/<image>`.

Preprocessing is the usual one: a random resized crop and a flip for training; for evaluation, the shorter side is
resized to 256 pixels (bilinear or, for some models, bicubic) and the central 224 x 224 are cropped. The order of each
part is fixed and mixes the classes, so that "the first 1000 test points" are the same everywhere.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from core.data.class_folders import SUFFIXES, Place, find_layout, name_classes
from core.data.file_tree import Entry, Folder
from core.data.image_decoding import HEAD, is_image
from core.data.left_out import MOST_LEFT_OUT, LeftOut
from core.data.parts import Parts
from core.data.stream import Stream
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import PartName
from core.schema.spec import Interpolation

_Files = dict[Place, list[tuple[str, int]]]
"""Path and size in bytes of each image."""


def load(
    folder: Path,
    *,
    workers: int | None = None,
    interpolation: Interpolation = "bilinear",
    most_left_out: float = MOST_LEFT_OUT,
    needed: Sequence[PartName] = ("train", "test"),
) -> Parts:
    """List the parts and the class names; no image is decoded.

    most_left_out: the share of the files that may be unreadable. needed: the parts that the folder must have. Raises
    BadDataset.
    """
    survey, left_out = Survey(), LeftOut(most_left_out)
    files, parts, classes = _find(folder, survey, left_out, needed)

    def stream(part: PartName) -> Stream | None:
        if part not in parts:
            return None
        return _stream(folder, files, part, classes, workers, interpolation, left_out)

    train = stream("train")
    assert train is not None, "name_classes has found images in it"
    return Parts(train, classes, stream("test"), stream("held_out"), survey, left_out)


def _find(
    folder: Path, survey: Survey, left_out: LeftOut, needed: Sequence[PartName]
) -> tuple[_Files, set[PartName], tuple[str, ...]]:
    if not folder.is_dir():
        there = folder.exists()
        raise BadDataset(
            f"{folder} is not a folder" if there else f"{folder} does not exist",
            hint="unpack it: large images are streamed from their own files" if there else "check the path",
            field="dataset",
        )
    listed = list(Folder(folder).paths())
    entries = [(entry, path) for entry, path in listed if not entry.is_folder]
    folders = (entry.name for entry, _ in listed if entry.is_folder)
    layout = find_layout((entry.name for entry, _ in entries), folders, folder.name, needed=needed)
    files: _Files = {}
    for entry, path in entries:
        place = layout.place(entry.name)
        if reason := place if isinstance(place, str) else entry.reason or _why_no_image(folder, entry, path):
            survey.add_unread(entry.name, reason)
        elif isinstance(place, Place):
            left_out.total += 1
            if entry.size == 0:
                left_out.add(entry.name, "it is empty")
                continue
            survey.counts[place] += 1
            files.setdefault(place, []).append((path, entry.size))
    left_out.check()
    classes = name_classes(layout, survey.counts, folder.name, needed=needed)
    return files, {place.part for place in files}, classes


def _why_no_image(folder: Path, entry: Entry, path: str) -> str | None:
    """Return the reason why a file is not an image; a file that is named as one is opened only when a run needs it."""
    if PurePosixPath(entry.name).suffix.lower() in SUFFIXES:
        return None
    try:
        with (folder / path).open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None if is_image(entry.name, head) else "it is not an image"


def _stream(
    folder: Path,
    files: _Files,
    part: PartName,
    classes: tuple[str, ...],
    workers: int | None,
    interpolation: Interpolation,
    left_out: LeftOut,
) -> Stream:
    found = [
        (os.fsencode(name), size, label)
        for label, class_name in enumerate(classes)
        for name, size in sorted(files.get(Place(part, class_name), ()))
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
        interpolation=interpolation,
        left_out=left_out,
    )
