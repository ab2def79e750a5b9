"""A second labelled set: what is read beside the first, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from core import data
from core.cli.console import event_lines
from core.data import extra_data
from core.data.split import Split
from core.data.stream import Stream
from core.data.training_set import TrainingSet
from core.inputs import Inputs, load
from core.schema.errors import BadDataset, BadInput, DoesNotFit, UserError
from core.schema.events import Finished, Started, Stepped
from core.schema.spec import FineTuneSpec, parse
from core.training.run import fine_tune
from tests.support.images import image, two_classes, write

_CLASSES = ("cat", "dog")
_MAIN = Split(torch.zeros(4, 3, 5, 6, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))


def _images(examples: int = 6, shape: tuple[int, ...] = (5, 6, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (examples, *shape), dtype=np.uint8)


def _npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("image", "label")])
def test_arrays_are_read_as_images_and_labels(images: str, labels: str, tmp_path: Path) -> None:
    pixels, numbers = _images(), np.array([0, 1, 1, 0, 1, 0])
    path = _npz(tmp_path / "a.npz", **{images: pixels, labels: numbers})
    found = extra_data.load(path, like=_MAIN, classes=_CLASSES).train
    assert isinstance(found, Split)
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), pixels)
    assert found.labels.tolist() == numbers.tolist()
    assert found.labels.dtype == torch.int64


def test_arrays_are_known_by_their_contents_whatever_the_name(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", images=_images(), labels=np.array([0, 1, 1, 0, 1, 0])).rename(tmp_path / "a.zip")
    assert extra_data.load(path, like=_MAIN, classes=_CLASSES).train.labels.tolist() == [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("how", ["folder", "zip"])
def test_a_folder_or_archive_needs_no_test_part_and_is_matched_by_class_name(how: str, tmp_path: Path) -> None:
    files = {name: content for name, content in two_classes().items() if name.startswith("train/")}
    found = extra_data.load(write(files, tmp_path, how), like=_MAIN, classes=("bird", "cat", "dog")).train
    assert isinstance(found, Split)
    red = found.pixels[:, 0, 0, 0].tolist()
    assert sorted(zip(red, found.labels.tolist(), strict=True)) == [
        (0, 1),
        (10, 1),
        (20, 1),
        (100, 2),
        (110, 2),
        (120, 2),
    ]


def test_the_hash_of_a_data_set_covers_its_extra_data(tmp_path: Path) -> None:
    path = write(two_classes(), tmp_path, "zip")
    one, two = (_npz(tmp_path / f"{n}.npz", images=_images(n), labels=np.zeros(n, dtype=int)) for n in (5, 6))
    hashes = {data.load("mine", path, extra=extra).sha256() for extra in (None, one, two)}
    assert len(hashes) == 3


_BAD: dict[str, tuple[dict[str, object], type[UserError], str]] = {
    "images without pixels": (
        {"images": np.zeros((5, 0, 0, 1), dtype=np.uint8), "labels": np.zeros(5, dtype=int)},
        BadDataset,
        "there are no images: they are of shape",
    ),
    "pickled objects": (
        {"images": np.array([{"a": 1}] * 3, dtype=object), "labels": np.zeros(3, dtype=int)},
        BadDataset,
        "allow_pickle=False",
    ),
    "no labels": ({"images": _images()}, BadDataset, "no array named labels, only images"),
    "floats": ({"images": _images() / 255, "labels": np.zeros(6, dtype=int)}, BadDataset, "images are float64"),
    "one label too few": ({"images": _images(), "labels": np.zeros(5, dtype=int)}, BadDataset, "6 images, but labels"),
    "labels that are no numbers": (
        {"images": _images(), "labels": np.array(["cat"] * 6)},
        BadDataset,
        "labels are <U3",
    ),
    "no images": ({"images": _images(0), "labels": np.zeros(0, dtype=int)}, BadDataset, "no images"),
    "another shape": ({"images": _images(6, (7, 6, 3)), "labels": np.zeros(6, dtype=int)}, DoesNotFit, "3 x 7 x 6"),
    "another number of channels": (
        {"images": _images(6, (5, 6, 1)), "labels": np.zeros(6, dtype=int)},
        DoesNotFit,
        "1 x 5",
    ),
    "a class too many": (
        {"images": _images(), "labels": np.arange(6)},
        DoesNotFit,
        "from 0 to 5, but the data set has 2",
    ),
    "labels below 0": ({"images": _images(), "labels": np.full(6, -1)}, DoesNotFit, "from -1"),
}


@pytest.mark.parametrize("what", list(_BAD))
def test_arrays_that_cannot_be_used_are_refused(what: str, tmp_path: Path) -> None:
    arrays, error, said = _BAD[what]
    with pytest.raises(error, match=said) as caught:
        extra_data.load(_npz(tmp_path / "a.npz", **arrays), like=_MAIN, classes=_CLASSES)
    assert caught.value.field == "extra_dataset"
    assert caught.value.hint


def test_a_pickle_is_refused_unopened_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "ti_500K_pseudo_labeled.pickle"
    path.write_bytes(pickle.dumps({"data": _images(), "extrapolated_targets": [0] * 6}))
    with pytest.raises(BadDataset, match=r"not a \.npz archive") as caught:
        extra_data.load(path, like=_MAIN, classes=_CLASSES)
    assert "numpy.savez" in caught.value.hint


def test_a_damaged_archive_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", images=_images(), labels=np.zeros(6, dtype=int))
    content = bytearray(path.read_bytes())
    content[300:310] = b"!" * 10
    path.write_bytes(content)
    with pytest.raises(BadDataset, match=r"cannot read a\.npz"):
        extra_data.load(path, like=_MAIN, classes=_CLASSES)
    with pytest.raises(BadDataset, match="does not exist"):
        extra_data.load(tmp_path / "b.npz", like=_MAIN, classes=_CLASSES)


def test_a_class_that_the_first_set_does_not_have_is_named(tmp_path: Path) -> None:
    path = write(two_classes() | {"train/emu/0.png": image(0)}, tmp_path, "zip")
    with pytest.raises(DoesNotFit, match=r"'emu' of data\.zip is not one of the 2 classes of the data set"):
        extra_data.load(path, like=_MAIN, classes=_CLASSES)


def test_pixels_brighter_than_white_are_refused(digits: data.Dataset, tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", images=_images(6, (8, 8, 1)), labels=np.zeros(6, dtype=int))
    with pytest.raises(BadDataset, match="maximum is 16"):
        extra_data.load(path, like=digits.train, classes=digits.classes)


def test_arrays_alone_are_no_data_set(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", images=_images(), labels=np.zeros(6, dtype=int))
    with pytest.raises(BadDataset, match="no test part") as caught:
        data.load("mine", path)
    assert "extra" in caught.value.hint


def test_a_streamed_set_takes_a_second_folder(tmp_path: Path) -> None:
    files = {name: image(number * 12, size=(30, 40)) for number, name in enumerate(two_classes())}
    main = write(files, tmp_path / "main", "folder")
    more = write({"train/dog/a.png": image(255, size=(50, 20))}, tmp_path / "more", "folder")
    with pytest.raises(BadDataset, match="single class"):
        data.load("imagenet", main, extra=more, workers=0)
    write({"train/cat/b.png": image(250, size=(50, 20))}, more, "folder")
    dataset = data.load("imagenet", main, extra=more, workers=0)
    assert isinstance(dataset.extra, Stream)
    train = TrainingSet(dataset.train, dataset.extra)
    (batch,) = train.batches([torch.tensor([0, 6, 7])], "none", torch.Generator())
    seen = [
        (round(float(255 * red)), int(label)) for red, label in zip(batch.images[:, 0, 0, 0], batch.labels, strict=True)
    ]
    assert sorted(seen[1:]) == [(250, 0), (255, 1)]
    assert seen[0][0] % 12 == 0


def test_a_run_takes_half_of_each_batch_from_its_extra_data(digits: data.Dataset, tmp_path: Path) -> None:
    pixels = digits.test.pixels[200:].permute(0, 2, 3, 1).numpy()
    path = _npz(tmp_path / "more.npz", images=pixels, labels=digits.test.labels[200:].numpy())
    spec = parse(
        {
            "base_model": "digits-cnn-linf",
            "epochs": 1,
            "train_examples": 96,
            "method": {"name": "e-at", "steps": 1},
            "extra_dataset": "more",
            "evaluation": {"protocol": "fast", "examples": 1, "include_base": False},
        }
    )
    assert isinstance(spec, FineTuneSpec)
    events = list(fine_tune(spec, tmp_path / "run", Inputs(extra_data=path)))
    assert isinstance(events[0], Started)
    # 32 of the 64 images of a batch come from each set.
    assert events[0].total_steps == -(-events[0].train_examples // 32) == 3
    assert events[0].extra_examples == 300
    assert "training (and 300 extra) and 1 test images" in "\n".join(event_lines(events[0]))
    assert events[0].data_sha256 != digits.sha256()
    assert sum(isinstance(event, Stepped) for event in events) == 3
    assert isinstance(events[-1], Finished)


def test_extra_data_needs_both_its_name_and_its_path(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="path of the extra data 'more' is missing"):
        load(parse({"base_model": "digits-cnn-linf", "extra_dataset": "more"}), Inputs())
    with pytest.raises(BadInput, match="names no extra data set"):
        load(parse({"base_model": "digits-cnn-linf"}), Inputs(extra_data=tmp_path))
