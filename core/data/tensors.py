"""A data set of tensors in memory: images and labels of the user's own, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from core.data import Dataset
from core.data.draws import draw_held_out_images
from core.data.points import check_points
from core.data.split import Split
from core.schema.errors import BadInput, DoesNotFit
from core.schema.progress import WarningRecord

Points = tuple[Tensor, Tensor]
"""Images and their labels."""
GivenData = Dataset | Points | tuple[Points, Points]
"""The data of a run: a data set; images and labels; or a pair of these, to train and to test on."""

_TEST_SHARE = 5
"""One image in this many is drawn for the test part where none is given."""


def from_tensors(
    train: Points, test: Points | None = None, *, classes: Sequence[str] | None = None, seed: int = 0
) -> Dataset:
    """Make a data set of images and labels.

    train, test: images (examples, channels, height, width), of floating point in [0, 1] or uint8 from 0 to 255, and
    labels (examples,) int64 from 0 on. Without a test part, a fifth of the images is drawn for it with the seed, each
    class with its share; a warning of the data set says so, and every report has that warning. classes: the name of
    each class, by its label; by default the labels themselves, up to the highest one.

    Raises BadInput for what are no such tensors, and DoesNotFit where the two parts differ in shape or a label has no
    name.
    """
    part = _read(train, "training")
    highest = int(part.labels.max())
    warnings: tuple[WarningRecord, ...] = ()
    if test is None:
        part, drawn = _draw_test_part(part, seed)
        warnings = (
            WarningRecord(
                code="test_part_drawn",
                message=f"no test part was given: {len(drawn)} of {len(part) + len(drawn)} images, drawn with seed "
                f"{seed}, are tested on and not trained on",
                remedy="give one for results that others can compare with: data=((images, labels), (test_images, "
                "test_labels))",
            ),
        )
    else:
        drawn = _read(test, "test")
        highest = max(highest, int(drawn.labels.max()))
    if drawn.shape != part.shape:
        raise DoesNotFit(
            f"the training images are {_describe(part.shape)}, the test images {_describe(drawn.shape)}",
            hint="give both parts images of one shape",
            field="data",
        )
    names = tuple(str(label) for label in range(max(highest + 1, 2))) if classes is None else tuple(classes)
    if highest >= len(names):
        raise DoesNotFit(
            f"a label is {highest}, but {len(names)} classes are named",
            hint="name every class, in the order of the labels, which count from 0",
            field="classes",
        )
    return Dataset(part, drawn, names, warnings=warnings)


def read_given(data: GivenData, *, seed: int) -> Dataset:
    """Make a data set of what a run was given. Raises BadInput and DoesNotFit."""
    match data:
        case Dataset():
            return data
        case ((_, _) as train, (_, _) as test):
            return from_tensors(train, test, seed=seed)
        case (_, _):
            return from_tensors(data, seed=seed)
    raise BadInput(
        f"the data are of the type {type(data).__name__}",
        hint="give data=(images, labels), data=((images, labels), (test_images, test_labels)), or a core.data.Dataset",
        field="data",
    )


def with_classes(dataset: Dataset, count: int) -> Dataset:
    """Return the data set with at least this many classes: a model may know some that no label has."""
    more = tuple(str(label) for label in range(len(dataset.classes), count))
    return replace(dataset, classes=(*dataset.classes, *more))


def _read(points: Points, part: str) -> Split:
    images, labels = points
    try:
        check_points(images, labels, or_bytes=True)
    except BadInput as error:
        raise BadInput(f"in the {part} part, {error.message}", hint=error.hint, field="data") from error
    return Split(*_as_pixels(images.detach().cpu(), labels.cpu()))


def _as_pixels(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    if images.dtype == torch.uint8:
        return images, labels, 255
    # Images that were bytes become bytes again: a quarter of the memory, and the same numbers.
    levels = (images * 255).round().to(torch.uint8)
    if torch.equal(levels.to(images.dtype) / 255, images):
        return levels, labels, 255
    return images, labels, 1


def _draw_test_part(part: Split, seed: int) -> tuple[Split, Split]:
    try:
        train, test = draw_held_out_images(
            part.labels, len(part) // _TEST_SHARE, "stratified", torch.Generator().manual_seed(seed)
        )
    except BadInput as error:
        raise _too_few(part) from error
    if not len(test):
        raise _too_few(part)
    return part.pick(train), part.pick(test)


def _too_few(part: Split) -> BadInput:
    return BadInput(
        f"{len(part)} images of {len(part.labels.unique())} classes are too few to draw a test part from",
        hint="give a test part of your own: data=((images, labels), (test_images, test_labels))",
        field="data",
    )


def _describe(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))
