"""Data sets: what is read, in which order, and what is refused."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core import data
from core.catalog import DATASETS
from core.data import Dataset
from core.errors import BadDataset, BadInput, UserError
from core.inputs import Inputs, load
from core.spec import parse


def test_digits_are_split_once_and_for_all(digits: Dataset) -> None:
    entry = DATASETS["digits"]
    assert (len(digits.train), len(digits.test)) == (entry.train_examples, entry.test_examples)
    assert digits.shape == entry.shape
    assert len(digits.classes) == entry.classes
    assert digits.sha256() == data.load("digits").sha256()
    assert digits.sha256() == "8a259e11a6737ad2105d0056c6e25f90bd34fd079587182c604a17d5f02bbef9"
    everything = torch.cat([digits.train.pixels, digits.test.pixels]).flatten(1)
    assert len(everything) == 1797
    assert digits.test.labels.bincount().min() >= 40


def test_images_span_zero_to_one(digits: Dataset) -> None:
    images = digits.train.images()
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)


def _image(value: int, *, size: tuple[int, int] = (6, 5), mode: str = "RGB", kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(content, kind)
    return content.getvalue()


def _files() -> dict[str, bytes]:
    """Two classes, three training images and one test image each; the red channel numbers them."""
    return {
        f"{part}/{label}/{number}.png": _image(100 * row + 10 * number + (part == "test"))
        for row, label in enumerate(("cat", "dog"))
        for part, count in (("train", 3), ("test", 1))
        for number in range(count)
    }


def _write(files: dict[str, bytes], root: Path, how: str) -> Path:
    match how:
        case "folder":
            for name, content in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            return root
        case "zip":
            with zipfile.ZipFile(root / "data.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return root / "data.zip"
        case _:
            with tarfile.open(root / f"data.{how}", f"w:{how.partition('.')[2]}") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            return root / f"data.{how}"


@pytest.mark.parametrize("how", ["folder", "zip", "tar", "tar.gz", "tar.xz"])
def test_folders_and_archives_give_the_same_data(how: str, tmp_path: Path) -> None:
    dataset = data.load("mine", _write(_files(), tmp_path, how))
    assert dataset.classes == ("cat", "dog")
    assert dataset.shape == (3, 5, 6)
    assert dataset.train.pixels.is_contiguous()
    reds = dataset.train.pixels[:, 0, 0, 0].tolist()
    assert dict(zip(reds, dataset.train.labels.tolist(), strict=True)) == {0: 0, 10: 0, 20: 0, 100: 1, 110: 1, 120: 1}
    assert sorted(zip(dataset.test.pixels[:, 0, 0, 0].tolist(), dataset.test.labels.tolist(), strict=True)) == [
        (1, 0),
        (101, 1),
    ]
    (tmp_path / "again").mkdir()
    assert dataset.sha256() == data.load("mine", _write(_files(), tmp_path / "again", "zip")).sha256()


def test_the_first_test_points_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    files = {
        f"{part}/{label}/{n:03}.png": _image(n) for part in ("train", "test") for label in "abcd" for n in range(50)
    }
    dataset = data.load("mine", _write(files, tmp_path, "zip"))
    assert set(dataset.test.first(40).labels.tolist()) == {0, 1, 2, 3}


def test_grey_images_keep_one_channel_unless_there_is_colour(tmp_path: Path) -> None:
    grey = {name: _image(7, mode="L") for name in _files()}
    assert data.load("mine", _write(grey, tmp_path, "zip")).shape == (1, 5, 6)
    mixed = grey | {"train/cat/9.png": _image(7)}
    assert data.load("mine", _write(mixed, tmp_path, "zip")).shape == (3, 5, 6)


def test_val_is_a_test_part_and_an_outer_folder_and_stray_files_do_no_harm(tmp_path: Path) -> None:
    files = {f"pets/{name.replace('test/', 'val/')}": content for name, content in _files().items()}
    files |= {"pets/README.md": b"hello", "pets/train/cat/notes.txt": b"x", "pets/train/cat/._0.png": b"junk"}
    assert len(data.load("mine", _write(files, tmp_path, "tar")).train) == 6


def test_names_that_point_outside_an_archive_reach_nothing(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    files = _files() | {"../../train/cat/8.png": _image(8), "/train/dog/9.png": _image(9)}
    data.load("mine", _write(files, inner, "zip"))
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


_BAD = {
    "no train part": ({"test/cat/0.png": _image(0)}, "train/"),
    "no test part": ({"train/cat/0.png": _image(0)}, "test/"),
    "a class without test images": (_files() | {"train/emu/0.png": _image(0)}, "emu"),
    "an empty class folder": (_files() | {"train/emu/.keep": b"", "test/emu/.keep": b""}, "emu"),
    "one class": ({"train/cat/0.png": _image(0), "test/cat/0.png": _image(0)}, "single class"),
    "a corrupt image": (_files() | {"train/cat/5.png": _image(3)[:40]}, "train/cat/5.png"),
    "text with an image's name": (_files() | {"train/cat/5.jpg": b"hello"}, "train/cat/5.jpg"),
    "another format with an image's name": (_files() | {"train/cat/5.png": _image(3, kind="BMP")}, "train/cat/5.png"),
    "mixed sizes": (_files() | {"train/dog/9.png": _image(3, size=(9, 9))}, "9 x 9"),
}


@pytest.mark.parametrize("how", ["folder", "zip"])
@pytest.mark.parametrize("what", list(_BAD))
def test_a_data_set_that_cannot_be_used_is_refused_by_name(what: str, how: str, tmp_path: Path) -> None:
    files, named = _BAD[what]
    with pytest.raises(BadDataset) as caught:
        data.load("mine", _write(files, tmp_path, how))
    assert named in caught.value.message
    assert caught.value.field == "dataset"
    assert caught.value.hint


def test_an_empty_class_folder_without_any_file_is_noticed(tmp_path: Path) -> None:
    _write(_files(), tmp_path, "folder")
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(BadDataset, match="emu"):
        data.load("mine", tmp_path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadDataset, match="bomb"):
        data.load("mine", _write(_files(), tmp_path, "zip"))


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz"])
def test_a_damaged_archive_is_refused(name: str, tmp_path: Path) -> None:
    whole = _write(_files(), tmp_path, name.partition(".")[2])
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BadDataset, match="data"):
        data.load("mine", tmp_path / name)


def test_a_path_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not from a path"):
        data.load("digits", tmp_path)


def test_unknown_names_and_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        data.load("digit")
    assert "did you mean 'digits'?" in caught.value.hint
    with pytest.raises(BadDataset, match="nothing at"):
        data.load("mine", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({name: _image(3) for name in _files()}, "1 x 8 x 8"),
        ({name: _image(3, size=(8, 8), mode="L") for name in _files()}, "10 classes"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    path = _write(files, tmp_path, "zip")
    spec = parse({"base_model": "digits-cnn-linf", "dataset": "mine", "eps": {"linf": 0.1, "l1": 1}})
    with pytest.raises(UserError, match=said) as caught:
        load(spec, Inputs(data=path))
    assert caught.value.field == "dataset"


def test_cifar10_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    root = tmp_path / CIFAR10.base_folder
    root.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    content = {"data": rows, "labels": [0, 3, 9, 3]}
    names = {"label_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]}
    files = {"train": content, "test": content, "meta": names}
    sums = {}
    for name, part in files.items():
        (root / name).write_bytes(pickle.dumps(part))
        sums[name] = hashlib.md5((root / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": sums["meta"]})
    dataset = data.load("cifar10", tmp_path)
    assert dataset.shape == DATASETS["cifar10"].shape
    assert dataset.classes[3] == "cat"
    assert dataset.train.labels.tolist() == [0, 3, 9, 3]
    assert np.array_equal(dataset.test.pixels.numpy(), rows.reshape(4, 3, 32, 32))


def test_cifar10_that_cannot_be_fetched_is_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "file:///nowhere/cifar-10-python.tar.gz")
    with pytest.raises(BadDataset, match="cannot fetch CIFAR-10") as caught:
        data.load("cifar10", tmp_path)
    assert "cifar-10-python.tar.gz" in caught.value.hint
