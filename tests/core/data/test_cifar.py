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


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_through_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name.upper())
    root = tmp_path / kind.base_folder
    root.mkdir()
    classes = [f"class {number:02}" for number in range(DATASETS[name].classes)]
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    labels = "labels" if name == "cifar10" else "fine_labels"
    content = {"data": rows, labels: [0, 3, 9, 3]}
    files = {"train": content, "test": content, "meta": {kind.meta["key"]: classes}}
    sums = {}
    for file, part in files.items():
        (root / file).write_bytes(pickle.dumps(part))
        sums[file] = hashlib.md5((root / file).read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": kind.meta["key"], "md5": sums["meta"]})
    dataset = data.load(name, tmp_path)
    assert dataset.shape == DATASETS[name].shape
    assert dataset.classes == tuple(classes)
    assert dataset.train.labels.tolist() == [0, 3, 9, 3]
    assert np.array_equal(dataset.test.first(4).pixels.numpy(), rows.reshape(4, 3, 32, 32))


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
