"""Data sets: images in [0, 1] and labels, small ones as bytes on the device, large ones streamed from their files.

A data set is a name in `core.schema.catalog.DATASETS`, or images of any kind that `core.data.sources` knows at a path.
The order of both parts is fixed, so that "the first 300 test points" are the same everywhere. A new data set is a file
here and an entry there.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from core.data import cifar, digits, extra_data, images, streamed
from core.data.image_folder import ImageFolder
from core.data.images import LeaveOut
from core.data.labelled_images import LabelledImages
from core.data.left_out import MOST_LEFT_OUT, MOST_LEFT_OUT_ON_REQUEST, LeftOut
from core.data.parts import Parts
from core.data.preprocessing import resize
from core.data.sources import open_source
from core.data.split import Split
from core.data.survey import Survey, count_shared
from core.schema.catalog import DATASETS
from core.schema.errors import BadDataset, BadInput
from core.schema.preprocessing import Preprocessing
from core.schema.progress import WarningRecord
from core.schema.suggestions import did_you_mean


@dataclass(frozen=True)
class Dataset:
    """A training and a test part with the same classes."""

    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    """The name of each class, by its label."""
    extra: LabelledImages | None = None
    """Extra data for training, with the same classes; None for none."""
    held_out: LabelledImages | None = None
    """The data set's own held-out part; None where it has none, and runs hold out training images."""
    unread: int = 0
    """Number of files that are not read, images that cannot be used included."""
    warnings: tuple[WarningRecord, ...] = ()
    """Reasons to doubt the data set that are known before its images are used."""
    left_out: tuple[LeftOut, ...] = ()
    """The files of streamed parts that turn out to be unreadable while a run reads them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.train.shape

    def sha256(self) -> str:
        """Return the sha256 of all images and labels; of streamed ones, of the names, sizes and labels of the files."""
        digest = hashlib.sha256()
        for part in (self.train, self.test, self.held_out, self.extra):
            if part is not None:
                part.update_hash(digest)
        return digest.hexdigest()

    def new_warnings(self) -> Iterator[WarningRecord]:
        """Yield a warning for each file that was left out since the last call."""
        for left_out in self.left_out:
            yield from left_out.warnings()


def load(
    name: str,
    path: Path | None = None,
    *,
    extra: Path | None = None,
    workers: int | None = None,
    preprocessing: Preprocessing | None = None,
    test_share: float | None = None,
    leave_out: LeaveOut | None = None,
) -> Dataset:
    """Load a data set by its name, or from a path if the catalogue does not know the name.

    For cifar10 and cifar100 the path is the official archive, the folder in it, torchvision's folder around that, or
    the images in another form; for imagenet the folder or archive with `train/` and `val/`. extra: a second labelled
    set, as `extra_data.load` reads it. workers: processes that read a streamed set, by default one per core.
    preprocessing: how images are brought to one size, by default that of the catalogue's entry, or else as they are.
    test_share: the share of each class that is drawn as the test part, for a set that has none. leave_out: called with
    each image that cannot be used and the reason, and the image is left out; by default the first such image raises an
    error. Of a streamed set, whose images are read during the run, one in a hundred may be unreadable by default, and
    half of them with leave_out, which is not called: `Dataset.new_warnings` names them.

    Raises BadInput for a missing or superfluous path, BadDataset when images cannot be read, and DoesNotFit for extra
    data of another shape or with other classes.
    """
    most_left_out = MOST_LEFT_OUT if leave_out is None else MOST_LEFT_OUT_ON_REQUEST
    entry = DATASETS.get(name)
    how = preprocessing or Preprocessing(**(entry.preprocessing if entry else {}))
    match name:
        case "digits" if path is not None:
            raise BadInput(
                "the digits are part of scikit-learn and take no path",
                hint=f"leave out --data, or give {path.name} another name with --dataset",
                field="dataset",
            )
        case "digits":
            train, test, classes = digits.load()
            parts = _resized(Parts(train, classes, test), how)
        case "cifar10" | "cifar100":
            parts = _resized(cifar.load(name, path, leave_out=leave_out), how)
        case _ if path is None:
            raise _needs_path(name)
        case _ if entry and entry.streamed:
            parts = _load_streamed(path, how, workers=workers, most_left_out=most_left_out)
        case _:
            parts = images.load(
                path,
                preprocessing=how,
                test_share=test_share,
                leave_out=leave_out,
                workers=workers,
                most_left_out=most_left_out,
            )
    assert parts.test is not None, "loaders raise an error where the test part is missing"
    dataset = Dataset(
        parts.train,
        parts.test,
        parts.classes,
        held_out=parts.held_out,
        unread=parts.survey.unread + parts.survey.refused,
        warnings=parts.survey.warnings(),
        left_out=() if parts.left_out is None else (parts.left_out,),
    )
    return dataset if extra is None else _with_extra(dataset, extra, how, leave_out, most_left_out)


def _resized(parts: Parts, preprocessing: Preprocessing) -> Parts:
    """Bring the images of a set in memory to another size. Raises BadInput."""
    if preprocessing.image_size is None:
        return parts
    test = None if parts.test is None else resize(parts.test, preprocessing)
    return replace(parts, train=resize(parts.train, preprocessing), test=test)


def _load_streamed(path: Path, preprocessing: Preprocessing, *, workers: int | None, most_left_out: float) -> Parts:
    survey = Survey()
    source = open_source(path, survey)
    if not isinstance(source, ImageFolder):
        raise BadDataset(
            f"{path.name} holds no image files in class folders",
            hint="give the folder or archive with train/ and val/; or give other images a name of their own",
            field="dataset",
        )
    return streamed.load(
        source,
        survey,
        preprocessing=preprocessing,
        workers=workers,
        most_left_out=most_left_out,
        always_in_colour=True,
    )


def _with_extra(
    dataset: Dataset, path: Path, preprocessing: Preprocessing, leave_out: LeaveOut | None, most_left_out: float
) -> Dataset:
    second = extra_data.load(
        path,
        like=dataset.train,
        classes=dataset.classes,
        preprocessing=preprocessing,
        leave_out=leave_out,
        most_left_out=most_left_out,
    )
    warnings = [*dataset.warnings, *second.survey.warnings()]
    shared = 0
    if isinstance(second.train, Split) and isinstance(dataset.test, Split):
        shared = count_shared(dataset.test, second.train)
    if shared:
        warnings.append(
            WarningRecord(
                code="data_test_in_extra",
                message=f"{shared:,} test images are also in the extra data, so accuracies are overrated",
                remedy="remove these images from the extra data",
            )
        )
    return replace(
        dataset,
        extra=second.train,
        unread=dataset.unread + second.survey.unread + second.survey.refused,
        warnings=tuple(warnings),
        left_out=dataset.left_out if second.left_out is None else (*dataset.left_out, second.left_out),
    )


def _needs_path(name: str) -> BadInput:
    if name in DATASETS:
        return BadInput(
            f"{name} cannot be downloaded: it must be on this machine",
            hint="give the folder with its train/ and val/ as --data",
            field="dataset",
        )
    return BadInput(
        f"there is no data set {name!r}",
        hint=f"{did_you_mean(name, DATASETS)}, or give a folder or archive with --data",
        field="dataset",
    )
