"""Class folders that are streamed: from a folder, or from a zip or an uncompressed tar archive, which is not unpacked.

ImageNet is always streamed, other sets where they do not fit the memory. No image is decoded when the set is loaded,
but for a sample that tells whether the set is grey. The order of each part is fixed and mixes the classes, so that "the
first 1000 test points" are the same everywhere.
"""

import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from core.data.class_folders import SUFFIXES, Place, name_classes
from core.data.file_tree import Folder
from core.data.image_decoding import HEAD, Unusable, decode, is_image, read_size
from core.data.image_folder import ImageFolder
from core.data.left_out import MOST_LEFT_OUT, LeftOut
from core.data.parts import Parts
from core.data.safe_zip import check_name, show
from core.data.spans import Span, read_span, span_in_tar, span_in_zip
from core.data.stream import SEPARATOR, Stream
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import PartName
from core.schema.preprocessing import Preprocessing

_SAMPLED = 64
"""Images that are decoded to see whether a set is grey."""


class _File(NamedTuple):
    """A file of the set, where it lies."""

    path: str
    """Below the folder that the set lies in; of a file in an archive, the archive's, a separator and the file's."""
    size: int
    span: Span | None
    """Where it lies in the archive; None for a file of a folder."""


_Files = dict[Place, list[_File]]


def load(
    source: ImageFolder,
    survey: Survey,
    *,
    preprocessing: Preprocessing,
    workers: int | None = None,
    most_left_out: float = MOST_LEFT_OUT,
    needed: Sequence[PartName] = ("train", "test"),
    always_in_colour: bool = False,
) -> Parts:
    """List the parts and the class names of class folders.

    most_left_out: the share of the files that may be unreadable. needed: the parts that the set must have.
    always_in_colour: whether grey images get three channels even where all are grey. Raises BadDataset.
    """
    root = source.path if source.path.is_dir() else source.path.parent
    left_out = LeftOut(most_left_out)
    files: _Files = {}
    located = dict(_locate(source.path))
    for name, place in source.places.items():
        file = located[name]
        if reason := _why_no_image(root, name, file):
            survey.add_unread(name, reason)
            continue
        left_out.total += 1
        if file.size == 0:
            left_out.add(name, "it is empty")
            continue
        survey.counts[place] += 1
        files.setdefault(place, []).append(file)
    left_out.check()
    classes = name_classes(source.layout, survey.counts, source.path.name, needed=needed)
    size, channels = _look(root, files, preprocessing, always_in_colour=always_in_colour)

    def stream(part: PartName) -> Stream | None:
        if not any(place.part == part for place in files):
            return None
        found = [
            (os.fsencode(file.path), file.size, label, file.span or Span(0, 0, 0))
            for label, class_name in enumerate(classes)
            for file in sorted(files.get(Place(part, class_name), ()))
        ]
        paths, sizes, labels, spans = zip(*found, strict=True)
        # numpy guarantees the stream of RandomState in every version.
        order = np.random.RandomState(0).permutation(len(found))
        return Stream(
            root,
            np.array(paths)[order],
            np.array(sizes, dtype=np.int64)[order],
            np.array(spans, dtype=np.int64)[order],
            torch.tensor(labels)[torch.from_numpy(order)],
            size=size,
            channels=channels,
            preprocessing=preprocessing,
            workers=workers,
            left_out=left_out,
        )

    train = stream("train")
    assert train is not None, "name_classes has found images in it"
    return Parts(train, classes, stream("test"), stream("held_out"), survey, left_out)


def _locate(path: Path) -> Iterator[tuple[str, _File]]:
    """Yield each file by its name, with the place where it lies. Raises BadDataset for an archive that is compressed
    as a whole."""
    if path.is_dir():
        for entry, inner in Folder(path).paths():
            if not entry.is_folder:
                yield entry.name, _File(inner, entry.size, None)
        return
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for packed in archive.infolist():
                name = check_name(packed.orig_filename)
                yield name, _File(f"{path.name}{SEPARATOR}{name}", packed.file_size, span_in_zip(packed))
        return
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    name = check_name(member.name.lstrip("/"))
                    yield name, _File(f"{path.name}{SEPARATOR}{name}", member.size, span_in_tar(member))
    except tarfile.TarError as error:
        raise BadDataset(
            f"a compressed tar archive cannot be streamed, and {show(path.name)} is one that would have to be",
            hint="unpack it, or pack its files into a zip or an uncompressed tar archive",
            field="dataset",
        ) from error


def _why_no_image(root: Path, name: str, file: _File) -> str | None:
    """Return the reason why a file is not an image; a file that is named as one is opened only when a run needs it."""
    if PurePosixPath(name).suffix.lower() in SUFFIXES:
        return None
    try:
        head = _read(root, file, most=HEAD)
    except Unusable as reason:
        return str(reason)
    return None if is_image(name, head) else "it is not an image"


def _read(root: Path, file: _File, *, most: int | None = None) -> bytes:
    """Read a file, or its first bytes. Raises Unusable."""
    return read_span(root / file.path.partition(SEPARATOR)[0], file.span, file.size, most=most)


def _look(
    root: Path, files: Mapping[Place, Sequence[_File]], preprocessing: Preprocessing, *, always_in_colour: bool
) -> tuple[tuple[int, int], int]:
    """Look at a sample of the images: return height and width of what the model gets, and the number of channels."""
    found = [file for group in files.values() for file in group]
    side = preprocessing.image_size
    size, is_grey = (side, side) if side else None, not always_in_colour
    if size and always_in_colour:
        return size, 3
    for file in found[:: max(len(found) // _SAMPLED, 1)]:
        try:
            content = _read(root, file)
            if size is None:
                width, height = read_size(content)
                size = height, width
            is_grey = is_grey and decode(content).image.mode == "L"
        except Unusable:
            continue
        if not is_grey:
            break
    if size is None:
        raise BadDataset(
            "none of the images that were looked at can be read", hint="replace these files", field="dataset"
        )
    return size, 1 if is_grey else 3
