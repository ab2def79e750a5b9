"""The protocol of a source of images, and what sources have in common whose labels are numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from core.data.class_folders import DRAW_TEST, Layout, Place
from core.data.drawn_test import draw_test_part
from core.data.safe_zip import show
from core.schema.errors import BadDataset
from core.schema.inspection_report import DatasetFormat, PartName

_MOST_CLASSES = 100_000


class Item(NamedTuple):
    """An image of a source, not yet decoded."""

    name: str
    """Its path, or its part and row."""
    place: Place
    """Its part and class."""
    content: bytes | np.ndarray | str
    """An encoded file, or pixels as (height, width) or (height, width, 3 or 4) uint8; or why neither is there."""


class ImageSource(Protocol):
    """The images of a data set, read one after the other."""

    format: DatasetFormat
    """How they are stored."""
    layout: Layout
    """The parts and the classes."""

    def __len__(self) -> int:
        """Return the number of files or rows that can be images."""

    def items(self) -> Iterator[Item]:
        """Yield the images of all parts, in an order that is the same each time. Raises BadDataset."""


class Rows(NamedTuple):
    """The places of images whose labels are numbers."""

    layout: Layout
    places: Mapping[str, Place]
    """The part and the class of each row, by the name of the row."""


def row_name(part: PartName, row: int) -> str:
    """Name a row: by its part in the source, and its number there from 0."""
    return f"{part}/{row:08}"


def place_rows(
    where: str,
    labels: Mapping[PartName, np.ndarray],
    *,
    names: Sequence[str],
    names_file: str | None,
    needed: Sequence[PartName],
    test_share: float | None,
) -> Rows:
    """Tell the part and the class of every row.

    where: name of the data set, for errors. labels: integers per part. names: of the classes; empty where the labels
    are their names. names_file: what holds these. needed, test_share: as in `sources.open_source`. Raises BadDataset.
    """
    labels = {part: labels[part] for part in labels if part == "train" or "test" in needed}
    if "train" not in labels:
        raise BadDataset(f"{where} has no training part", hint="add images to train on", field="dataset")
    if test_share is not None and "test" in labels:
        raise BadDataset(f"{where} has its own test part", hint="leave test_share out", field="test_share")
    if "test" in needed and test_share is None and "test" not in labels:
        raise BadDataset(
            f"{where} has no test part",
            hint=f"{DRAW_TEST}; or use it as extra data, beside another data set",
            field="dataset",
        )
    classes = _name_classes(where, labels, names)
    order = {part: [classes[number] for number in numbers.tolist()] for part, numbers in labels.items()}
    each = {part: {label: Place(part, label) for label in classes} for part in labels}
    places = {
        row_name(part, row): each[part][label] for part, found in order.items() for row, label in enumerate(found)
    }
    if test_share is not None:
        places = draw_test_part(places, test_share)
    layout = Layout("", {}, dict.fromkeys(labels, classes), tuple(classes), names_file)
    return Rows(layout if test_share is None else layout.with_drawn_test(), places)


def _name_classes(where: str, labels: Mapping[PartName, np.ndarray], names: Sequence[str]) -> Sequence[str]:
    """Return the names of the classes. Raises BadDataset for labels that are no numbers of classes."""
    numbers = np.concatenate(list(labels.values()))
    if not len(numbers):
        raise BadDataset(f"{where} holds no images", hint="add images", field="dataset")
    low, high = int(numbers.min()), int(numbers.max())
    count = len(names) or high + 1
    if low < 0:
        raise BadDataset(
            f"labels in {where} go from {low} to {high}: a negative label is none",
            hint="number the classes from 0, and leave out images without a label",
            field="dataset",
        )
    if high >= count:
        raise BadDataset(
            f"labels in {where} go up to {high}, but {count} classes are named",
            hint=f"name every class, or label the images from 0 to {count - 1}",
            field="dataset",
        )
    if count > _MOST_CLASSES:
        raise BadDataset(
            f"labels in {where} go up to {high}: they are no numbers of classes",
            hint="number the classes from 0 without gaps",
            field="dataset",
        )
    present = np.bincount(numbers, minlength=count) > 0
    if not present.all():
        missing = int(np.argmin(present))
        named = f" ('{show(names[missing])}')" if names else ""
        raise BadDataset(
            f"no image in {where} has the label {missing}{named}, but labels go from {low} to {high}",
            hint="number the classes from 0 without gaps, and name only those that have images",
            field="dataset",
        )
    return list(names) or [str(number) for number in range(count)]
