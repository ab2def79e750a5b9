"""Extra data: a second labelled set to train on, such as the 500,000 pseudo-labelled images of Carmon et al. 2019.

It must have the shape and the classes of the first set; `core.data.training_set` mixes the two in each batch.
"""

from dataclasses import replace
from pathlib import Path

from core.data import arrays, images, streamed
from core.data.image_folder import ImageFolder
from core.data.images import LeaveOut
from core.data.labelled_images import LabelledImages
from core.data.left_out import MOST_LEFT_OUT
from core.data.parts import Parts
from core.data.preprocessing import resize
from core.data.sources import open_source
from core.data.split import Split
from core.data.stream import Stream
from core.data.survey import Survey
from core.schema.errors import BadDataset, DoesNotFit
from core.schema.preprocessing import Preprocessing


def load(
    path: Path,
    *,
    like: LabelledImages,
    classes: tuple[str, ...],
    preprocessing: Preprocessing | None = None,
    leave_out: LeaveOut | None = None,
    most_left_out: float = MOST_LEFT_OUT,
) -> Parts:
    """Load a second set beside one whose training part is `like`; it has a training part only.

    path: a `.npz` file of `images` and `labels`, whose numbers are those of the first set; or any other kind of data
    set with a training part, whose classes are matched by name. Pixels are in the units of the first set: 0 to 255, but
    0 to 16 for the digits. preprocessing, leave_out, most_left_out: as in `images.load`. Raises BadDataset when the set
    cannot be read, and DoesNotFit when it has another shape or other classes.
    """
    try:
        parts = _read(path, like, preprocessing or Preprocessing(), leave_out, most_left_out)
    except BadDataset as error:
        raise BadDataset(error.message, hint=error.hint, field="extra_dataset") from error
    found = parts.train
    if found.shape != like.shape:
        raise DoesNotFit(
            f"extra images in {path.name} are {_describe(found.shape)}, those of the data set {_describe(like.shape)}",
            hint="resize one of them",
            field="extra_dataset",
        )
    if parts.classes:
        return replace(parts, train=_renumbered(found, parts.classes, classes, path))
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or high >= len(classes):
        raise DoesNotFit(
            f"labels in {path.name} go from {low} to {high}, but the data set has {len(classes)} classes",
            hint=f"label the extra images from 0 to {len(classes) - 1}",
            field="extra_dataset",
        )
    return parts


def _read(
    path: Path, like: LabelledImages, preprocessing: Preprocessing, leave_out: LeaveOut | None, most_left_out: float
) -> Parts:
    """Read the images, and the names of their classes where there are any."""
    if isinstance(like, Stream):
        return _stream(path, like, most_left_out)
    assert isinstance(like, Split)
    if arrays.is_arrays(path):
        split = arrays.load(path)
        parts = Parts(resize(split, preprocessing) if preprocessing.image_size else split, ())
    else:
        parts = images.load(path, preprocessing=preprocessing, leave_out=leave_out, needed=("train",))
    found = parts.train
    if not isinstance(found, Split):
        raise BadDataset(
            f"the images of {path.name} do not fit the memory, but those of the data set do",
            hint="use fewer extra images",
            field="dataset",
        )
    if int(found.pixels.max()) > like.white:
        raise BadDataset(
            f"pixel values in {path.name} reach {int(found.pixels.max())}, but the data set's maximum is {like.white}",
            hint="store both in the same units",
            field="extra_dataset",
        )
    return replace(parts, train=replace(found, white=like.white))


def _stream(path: Path, like: Stream, most_left_out: float) -> Parts:
    survey = Survey()
    source = open_source(path, survey, needed=("train",))
    if not isinstance(source, ImageFolder):
        raise BadDataset(
            f"{path.name} holds no image files in class folders, but the data set is streamed from such files",
            hint="store the extra images as train/<class>/<image>",
            field="dataset",
        )
    return streamed.load(
        source,
        survey,
        preprocessing=like.preprocessing,
        workers=like.workers,
        most_left_out=most_left_out,
        needed=("train",),
        always_in_colour=like.channels == 3,
    )


def _describe(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _renumbered(found: LabelledImages, names: tuple[str, ...], classes: tuple[str, ...], path: Path) -> LabelledImages:
    """Replace the labels by those of the first set for the same class names."""
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DoesNotFit(
            f"class '{unknown[0]}' of {path.name} is not one of the {len(classes)} classes of the data set",
            hint="use the class names of the data set, and leave out other classes",
            field="extra_dataset",
        )
    numbers = found.labels.new_tensor([classes.index(name) for name in names])
    return found.with_labels(numbers[found.labels])
