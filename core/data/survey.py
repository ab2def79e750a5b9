"""The contents of a data set's files: numbers per class, images that occur more than once, and files that are not read.

The inspection of an upload and the start of a run count with the same `Survey`, so that both tell the same.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.data.class_folders import HIDDEN, Place
from core.data.safe_zip import show
from core.data.split import Split
from core.schema.inspection_report import Doubles, PartName, Twins, UnreadFile
from core.schema.progress import WarningRecord

_MOST_SHOWN = 20
_MOST_UNREAD_SHOWN = 100


@dataclass
class Survey:
    """The numbers so far; `add` and `add_unread` count one file each."""

    counts: Counter[Place] = field(default_factory=Counter)
    """Images per part and class."""
    refused: int = 0
    """Images that cannot be used and are left out."""
    unread: int = 0
    """Files that are not read: they are no images, or lie in no class folder of a part."""
    unread_by_reason: Counter[str] = field(default_factory=Counter)
    """Their number by reason."""
    unread_files: list[UnreadFile] = field(default_factory=list)
    """The first of them."""
    transparent: int = 0
    """Images with transparent pixels, which are shown on white."""
    _unread: set[str] = field(default_factory=set)
    _images: dict[bytes, list[tuple[Place, str]]] = field(default_factory=dict)

    def add(self, place: Place, name: str, pixels: np.ndarray, *, is_transparent: bool) -> None:
        """Count an image. pixels: (height, width) or (height, width, 3) uint8."""
        self.counts[place] += 1
        self.transparent += is_transparent
        self._images.setdefault(_hash(pixels), []).append((place, name))

    def add_unread(self, name: str, reason: str) -> None:
        """Count a file that is not read; each is counted once."""
        if name in self._unread:
            return
        self._unread.add(name)
        self.unread += 1
        self.unread_by_reason[reason] += 1
        if len(self.unread_files) < _MOST_UNREAD_SHOWN:
            self.unread_files.append(UnreadFile(name=show(name), reason=reason))

    def overlap(self, part: PartName, others: Sequence[PartName]) -> Doubles:
        """Find images of a part that also occur in other parts, each paired with its first duplicate there."""
        return _doubles(
            (name, twin)
            for group in self._images.values()
            if (twin := next((name for place, name in group if place.part in others), None)) is not None
            for place, name in group
            if place.part == part
        )

    def repeated(self, part: PartName) -> Doubles:
        """Find the images of a part that are equal to one before them in the same part."""
        groups = ([name for place, name in group if place.part == part] for group in self._images.values())
        return _doubles((name, group[0]) for group in groups for name in group[1:])

    def conflicting(self) -> Doubles:
        """Find the images that are equal to one of another class, in any part, each with the first such image."""
        return _doubles(
            (name, next(other for elsewhere, other in group if elsewhere.label != place.label))
            for group in self._images.values()
            if len({place.label for place, _ in group}) > 1
            for place, name in group
        )

    def warnings(self) -> tuple[WarningRecord, ...]:
        """List the reasons to doubt the data set."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[WarningRecord]:
        if (found := self.conflicting()).count:
            twins = found.examples[0]
            yield WarningRecord(
                code="data_conflicting_labels",
                message=f"{found.count:,} images are equal to an image of another class: {twins.name} is {twins.twin}",
                remedy="keep each picture in the one class that it shows",
            )
        if (found := self.overlap("test", ("train", "held_out"))).count:
            twins = found.examples[0]
            yield WarningRecord(
                code="data_test_in_train",
                message=f"{found.count:,} test images are also in the training or held-out part, so accuracies are "
                f"overrated: {twins.name} is {twins.twin}",
                remedy="remove these images from one of the parts",
            )
        if (found := self.overlap("held_out", ("train",))).count:
            twins = found.examples[0]
            yield WarningRecord(
                code="data_held_out_in_train",
                message=f"{found.count:,} held-out images are also in the training part, so the best epoch is chosen "
                f"by images that were trained on: {twins.name} is {twins.twin}",
                remedy="remove these images from one of the parts",
            )
        if self.transparent:
            yield WarningRecord(
                code="data_transparent",
                message=f"{self.transparent:,} images have transparent pixels, which are shown on white",
                remedy="if they are meant for another background, put them on it and store them without transparency",
            )
        if missed := self.unread - self.unread_by_reason[HIDDEN]:
            shown = next((file for file in self.unread_files if file.reason != HIDDEN), None)
            example = f", such as {shown.name}: {shown.reason}" if shown else ""
            yield WarningRecord(
                code="data_not_read",
                message=f"{missed:,} files of the data set are not read{example}",
                remedy="move images into train/<class>/ or test/<class>/, and remove other files",
            )


def count_shared(one: Split, other: Split) -> int:
    """Count the images of one split that are also in another one of the same shape."""
    known = {_hash_row(row) for row in other.pixels.numpy()}
    return sum(_hash_row(row) in known for row in one.pixels.numpy())


def _doubles(pairs: Iterator[tuple[str, str]]) -> Doubles:
    count = 0
    shown: list[Twins] = []
    for name, twin in pairs:
        count += 1
        if len(shown) < _MOST_SHOWN:
            shown.append(Twins(name=show(name), twin=show(twin)))
    return Doubles(count=count, examples=tuple(shown))


def _hash(pixels: np.ndarray) -> bytes:
    """Hash an image as runs see it: a grey image and its copy in colour have the same hash."""
    return _hash_row(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))


def _hash_row(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
