"""CIFAR-10 and CIFAR-100, from torchvision's files or from images."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from core import data
from core.data import cifar
from core.schema.catalog import DATASETS
from core.schema.errors import BadDataset
from tests.support.images import image, write


def _official(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], np.ndarray]:
    """Make small files in the official format, and let their checksums be the official ones."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name.upper())
    classes = [f"class {number:02}" for number in range(DATASETS[name].classes)]
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    content = {"data": rows, "labels" if name == "cifar10" else "fine_labels": [0, 3, 9, 3]}
    lists = [[file for file, _ in files] for files in (kind.train_list, kind.test_list)]
    meta = kind.meta["filename"]
    files = {file: pickle.dumps(content) for file in (*lists[0], *lists[1])}
    files[meta] = pickle.dumps({kind.meta["key"]: classes})
    sums = {file: hashlib.md5(part).hexdigest() for file, part in files.items()}
    for where, names in zip(("train_list", "test_list"), lists, strict=True):
        monkeypatch.setattr(kind, where, [[file, sums[file]] for file in names])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[meta]})
    monkeypatch.setattr(kind, "url", "file:///nowhere/at/all")
    return {f"{kind.base_folder}/{file}": part for file, part in files.items()}, rows


_HOW = ["around", "inner", "renamed", "tar.gz", "tar", "unread"]


def _placed(files: dict[str, bytes], root: Path, how: str) -> Path:
    """Place the official files as users have them, and return what they give as --data."""
    inner = next(iter(files)).partition("/")[0]
    match how:
        case "around":
            return write(files, root, "folder")
        case "inner":
            return write(files, root, "folder") / inner
        case "renamed":
            return write({name.replace(inner, "mine"): part for name, part in files.items()}, root, "folder") / "mine"
        case "unread":
            archive = {"cifar-10-batches-py": "cifar-10-python.tar.gz", "cifar-100-python": "cifar-100-python.tar.gz"}
            write(files, root, "tar.gz").rename(root / archive[inner])
            return root
        case _:
            return write(files, root, how)


@pytest.mark.parametrize("how", _HOW)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_official_files_are_read_in_whatever_way_they_lie(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, rows = _official(name, monkeypatch)
    path = _placed({**files, "cifar-readme.html": b"hello"} if how == "tar" else files, tmp_path, how)
    dataset = data.load(name, path)
    parts = 5 if name == "cifar10" else 1
    assert dataset.shape == DATASETS[name].shape
    assert dataset.classes == tuple(f"class {number:02}" for number in range(DATASETS[name].classes))
    assert dataset.train.labels.tolist() == [0, 3, 9, 3] * parts
    assert np.array_equal(dataset.test.first(4).pixels.numpy(), rows.reshape(4, 3, 32, 32))


@pytest.mark.parametrize("how", _HOW)
def test_an_official_file_with_a_wrong_checksum_is_damaged_and_never_unpickled(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "canary",)  # type: ignore[return-value]

    files, _ = _official("cifar10", monkeypatch)
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps(Canary())
    path = _placed(files, tmp_path, how)
    with pytest.raises(BadDataset, match="is damaged: the checksum of data_batch_3 is not") as caught:
        data.load("cifar10", path)
    assert "cifar-10-python.tar.gz again" in caught.value.hint
    assert not (tmp_path / "canary").exists()


def test_an_official_archive_that_is_cut_off_or_lacks_a_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = _official("cifar10", monkeypatch)
    path = write(files, tmp_path, "tar")
    path.write_bytes(path.read_bytes()[:45_000])
    with pytest.raises(BadDataset, match=r"data\.tar is damaged: .*unexpected end of data"):
        data.load("cifar10", path)
    del files["cifar-10-batches-py/test_batch"]
    with pytest.raises(BadDataset, match="is damaged: test_batch is missing"):
        data.load("cifar10", write(files, tmp_path, "tar"))


def test_the_archive_of_another_set_or_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = _official("cifar100", monkeypatch)
    with pytest.raises(BadDataset, match="holds CIFAR-100, not CIFAR-10") as caught:
        data.load("cifar10", write(files, tmp_path, "tar.gz"))
    assert "--dataset cifar100" in caught.value.hint
    with pytest.raises(BadDataset, match="the version of CIFAR-10 for another program"):
        data.load("cifar10", write({"cifar-10-batches-bin/data_batch_1.bin": b"x"}, tmp_path, "tar"))


@pytest.mark.parametrize("how", ["folder", "zip"])
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_images_where_the_path_holds_those(
    name: str, classes: int, how: str, tmp_path: Path
) -> None:
    files = {
        f"{part}/{label:02}/0.png": image(label, size=(32, 32))
        for part in ("train", "test")
        for label in range(classes)
    }
    dataset = data.load(name, write(files, tmp_path, how))
    assert dataset.shape == (3, 32, 32)
    assert torch.equal(dataset.test.first(99).pixels[:, 0, 0, 0].long(), dataset.test.labels[:99])


@pytest.mark.parametrize(("size", "classes"), [((32, 32), 9), ((30, 32), 10)])
def test_images_that_are_not_cifar10_are_refused_under_its_name(
    size: tuple[int, int], classes: int, tmp_path: Path
) -> None:
    files = {f"{part}/{label}/0.png": image(0, size=size) for part in ("train", "test") for label in range(classes)}
    with pytest.raises(BadDataset, match=f"not CIFAR-10: 3 x 32 x {size[0]} images in {classes} classes"):
        data.load("cifar10", write(files, tmp_path, "folder"))


def test_a_mistyped_path_is_no_place_to_fetch_cifar10_into(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="does not exist") as caught:
        data.load("cifar10", tmp_path / "cifra")
    assert "check the path" in caught.value.hint
    assert not (tmp_path / "cifra").exists()


def test_unusable_images_are_left_out_of_cifar10_too(tmp_path: Path) -> None:
    files = {f"{part}/{n}/0.png": image(n, size=(32, 32)) for part in ("train", "test") for n in range(10)}
    path = write(files | {"train/3/9.png": b"hello", "train/4/9.png": image(0, size=(9, 9))}, tmp_path, "folder")
    left_out: dict[str, str] = {}
    assert len(data.load("cifar10", path, leave_out=left_out.__setitem__).train) == 10
    assert set(left_out) == {"train/3/9.png", "train/4/9.png"}
    with pytest.raises(BadDataset, match=r"train/3/9\.png"):
        data.load("cifar10", path)


def test_cifar10_that_cannot_be_fetched_is_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "file:///nowhere/cifar-10-python.tar.gz")
    with pytest.raises(BadDataset, match="cannot download CIFAR-10") as caught:
        data.load("cifar10", tmp_path)
    assert "cifar-10-python.tar.gz" in caught.value.hint


def test_a_download_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def fetch(name: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "batches").touch()
        if not works:
            raise BadDataset("cut off", hint="again", field="dataset")
        fetched.append(name)

    works, fetched = False, list[str]()
    monkeypatch.setattr(cifar, "_fetch", fetch)
    with pytest.raises(BadDataset):
        cifar.download("cifar10")
    assert list((tmp_path / ".cache" / "temper").iterdir()) == []
    works = True
    folder = cifar.download("cifar10")
    assert [file.name for file in folder.iterdir()] == ["batches"]
    assert cifar.download("cifar10") == folder == tmp_path / ".cache" / "temper" / "cifar10"
    assert fetched == ["cifar10"]
