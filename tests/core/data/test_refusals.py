"""Every refusal of a data set, with an input that provokes it: the reason given is the reason."""

import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import data
from core.data import image_folder
from core.data.safe_zip import Caps
from core.intake.inspect import inspect_dataset
from core.schema.errors import BadInput, OverLimit, UserError
from tests.support.images import image, two_classes, write

_TWO = two_classes()
_LARGE = {name: image(3, size=(40, 30)) for name in _TWO}


def _without(part: str) -> dict[str, bytes]:
    return {name: content for name, content in _TWO.items() if not name.startswith(part)}


def _zip(files: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda folder: write(files, folder, "zip")


def _tar(files: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda folder: write(files, folder, "tar")


def _folder(files: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda folder: write(files, folder, "folder")


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _twice_in_a_tar(folder: Path) -> Path:
    path = write(_TWO, folder, "tar")
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("train/cat/0.png"))
    return path


def _npz(**arrays: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return make


_BLANK = np.zeros((2, 5, 6, 3), dtype=np.uint8)

# What is made -> what is said, from its first letter to its last; {} stands for the path.
_REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "birds", "{} does not exist"),
    "no training part": (_zip(_without("train")), "there is no folder 'train/' beside 'test/' in data.zip"),
    "no test part": (_zip(_without("test")), "there is no folder 'test/' beside 'train/' in data.zip"),
    "no parts at all": (_zip({"cat/1.png": image(1)}), "there is no folder 'train/' in data.zip"),
    "an empty archive": (_zip({}), "there is no folder 'train/' in data.zip"),
    "images without class folders": (
        _zip({"train/1.png": image(1), "test/1.png": image(2)}),
        "'train/' in data.zip has no class folders",
    ),
    "a class without test images": (
        _zip(_TWO | {"train/emu/0.png": image(0)}),
        "class 'emu' has no folder under 'test/' in data.zip",
    ),
    "a class whose test folder is empty": (
        _folder(_TWO | {"train/emu/0.png": image(0), "test/emu/.keep": b""}),
        "class 'emu' has no images under 'test/' in {name}",
    ),
    "no image at all": (
        _zip({"train/cat/a.txt": b"x", "train/dog/b.txt": b"x", "test/cat/a.txt": b"x", "test/dog/b.txt": b"x"}),
        "no images found in the class folders under 'train/' in data.zip",
    ),
    "one class": (
        _zip({name: content for name, content in _TWO.items() if "dog" not in name}),
        "data.zip has a single class: 'cat' is the only folder under 'train/'",
    ),
    "classes one folder too deep": (
        _zip({name.replace("/", "/all/", 1): content for name, content in _TWO.items()}),
        "data.zip has a single class: 'all' is the only folder under 'train/'",
    ),
    "a held-out class that is not trained on": (
        _zip(_TWO | {"val/cat/0.png": image(4), "val/emu/0.png": image(5)}),
        "class 'emu' of 'val/' has no images to train on in data.zip",
    ),
    "text named as an image": (
        _zip(_TWO | {"train/cat/9.jpg": b"hello"}),
        "cannot read train/cat/9.jpg: it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image",
    ),
    "an empty image": (_zip(_TWO | {"train/cat/9.jpg": b""}), "cannot read train/cat/9.jpg: it is empty"),
    "an image of another size": (
        _tar(_TWO | {"train/dog/9.png": image(3, size=(9, 8))}),
        "images differ in size: train/cat/0.png is 6 x 5, train/dog/9.png is 9 x 8",
    ),
    "a name that leads out": (
        _zip(_TWO | {"../9.png": b"x"}),
        "the name ../9.png has '..' in it, which can lead out of the archive",
    ),
    "the same in a tar": (
        _tar(_TWO | {"train/../../9.png": b"x"}),
        "the name train/../../9.png has '..' in it, which can lead out of the archive",
    ),
    "a name with a drive": (_zip(_TWO | {"C:\\9.png": b"x"}), "the name C:\\9.png begins with the letter of a drive"),
    "an absolute name": (_zip(_TWO | {"/9.png": b"x"}), "the name /9.png is absolute: it begins at the root of a disk"),
    "a name twice": (_twice_in_a_tar, "train/cat/0.png occurs twice"),
    "neither zip nor tar": (
        _file("birds.rar", b"Rar!" * 200),
        "cannot read birds.rar: it is neither a zip nor a tar archive, or its beginning is damaged",
    ),
    "arrays": (_npz(images=_BLANK, labels=[0, 1]), "a.npz has no test part"),
}


@pytest.mark.parametrize("what", list(_REFUSED))
def test_a_data_set_is_refused_for_the_reason_that_it_has(what: str, tmp_path: Path) -> None:
    make, said = _REFUSED[what]
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        data.load("mine", path)
    assert caught.value.message == said.replace("{name}", path.name).replace("{}", str(path))
    assert caught.value.field == "dataset"
    assert caught.value.hint


def test_a_folder_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(_TWO, tmp_path, "folder")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*train/cat/2\.png: Permission denied"):
        data.load("mine", tmp_path)


def test_an_image_too_large_to_be_read_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "_LARGEST_FILE", 2**20)
    for how in ("zip", "tar", "folder"):
        (tmp_path / how).mkdir()
        path = write(_TWO | {"train/cat/9.png": bytes(2**20 + 1)}, tmp_path / how, how)
        with pytest.raises(UserError, match=r"^cannot read train/cat/9\.png: it is larger than 1 MiB$"):
            data.load("mine", path)
        left_out: dict[str, str] = {}
        assert len(data.load("mine", path, leave_out=left_out.__setitem__).train) == 6
        assert left_out == {"train/cat/9.png": "it is larger than 1 MiB"}


def test_links_that_lead_nowhere_and_devices_are_counted_not_read(tmp_path: Path) -> None:
    write(_TWO, tmp_path / "a", "folder")
    (tmp_path / "a" / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "a" / "train" / "cat" / "pipe.png")
    assert data.load("mine", tmp_path / "a").unread == 2
    path = write(_TWO, tmp_path, "tar")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/8.png")
        link.type, link.linkname = tarfile.LNKTYPE, "train/cat/0.png"
        archive.addfile(link)
    dataset = data.load("mine", path)
    assert (len(dataset.train), dataset.unread) == (6, 1)
    assert "such as train/cat/8.png: it is a link in the archive" in dataset.warnings[0].message


_INPUTS: dict[str, tuple[str, dict[str, Any], type[UserError], str]] = {
    "the digits from a path": (
        "digits",
        {"path": Path("birds.zip")},
        BadInput,
        "the digits are part of scikit-learn and take no path",
    ),
    "imagenet without a path": ("imagenet", {}, BadInput, "imagenet cannot be downloaded: it must be on this machine"),
    "an unknown name": ("birds", {}, BadInput, "there is no data set 'birds'"),
}


@pytest.mark.parametrize("what", list(_INPUTS))
def test_a_name_and_a_path_that_do_not_go_together_are_told(what: str) -> None:
    name, options, error, said = _INPUTS[what]
    with pytest.raises(error) as caught:
        data.load(name, **options)
    assert (caught.value.message, caught.value.field) == (said, "dataset")


_UPLOADS: dict[str, tuple[Callable[[Path], Path], Caps, str]] = {
    "nothing there": (lambda folder: folder / "a.zip", Caps(), "{} does not exist"),
    "a folder": (lambda folder: folder, Caps(), "{} is a folder"),
    "half a tar": (
        lambda folder: _file("a.tar", write(_TWO, folder, "tar").read_bytes()[:900])(folder),
        Caps(),
        "cannot read a.tar: unexpected end of data",
    ),
    "half a zip": (
        lambda folder: _file("a.zip", write(_TWO, folder, "zip").read_bytes()[:900])(folder),
        Caps(),
        "cannot read a.zip: it is neither a zip nor a tar archive, or its beginning is damaged",
    ),
    "more that is unusable than usable": (
        _zip(_TWO | {f"train/cat/b{n}.png": b"x" for n in range(9)}),
        Caps(),
        "9 of 17 images cannot be used; the first is train/cat/b0.png: it is not a JPEG, PNG, WebP, BMP, TIFF or GIF "
        "image",
    ),
    "more pixels than allowed": (
        _zip(_LARGE),
        Caps(total_bytes=20_000),
        "the decoded images take more than 1.86e-05 GiB",
    ),
    "a class that cannot be shown": (
        _zip({name.replace("cat", "c\u202eat"): content for name, content in _TWO.items()}),
        Caps(),
        "the name of the class c\ufffdat has characters that cannot be shown",
    ),
    "a class with a long name": (
        _zip({name.replace("cat", "c" * 200): content for name, content in _TWO.items()}),
        Caps(),
        f"the name of the class {'c' * 60}\u2026{'c' * 60} is too long",
    ),
    "an archive inside": (
        _zip(_TWO | {"train/cat/more.zip": b"x"}),
        Caps(),
        "train/cat/more.zip is an archive inside the archive",
    ),
}


@pytest.mark.parametrize("what", list(_UPLOADS))
def test_an_upload_is_refused_for_the_reason_that_it_has(what: str, tmp_path: Path) -> None:
    make, caps, said = _UPLOADS[what]
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        inspect_dataset(path, tmp_path / "out", caps=caps)
    assert caught.value.message == said.replace("{}", str(path))
    assert caught.value.field in ("dataset", "file")
    assert caught.value.hint
    assert isinstance(caught.value, OverLimit) == ("decoded" in said)


def test_a_zip_made_by_a_windows_program_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in _TWO.items():
            archive.writestr(f"pets\\{name}".replace("/", "\\"), content)
    assert len(data.load("mine", tmp_path / "a.zip").train) == 6
    found = inspect_dataset(tmp_path / "a.zip", tmp_path / "out", caps=Caps())
    assert (found.root, found.train_examples, found.unread) == ("pets", 6, 0)


def test_doubles_are_counted_and_conflicting_labels_are_a_warning(tmp_path: Path) -> None:
    files = _TWO | {
        "train/cat/again.png": _TWO["train/cat/0.png"],
        "train/dog/cat.png": _TWO["train/cat/1.png"],
        "val/cat/0.png": _TWO["train/cat/2.png"],
        "val/dog/0.png": image(250),
        "test/cat/8.png": _TWO["train/cat/0.png"],
    }
    path = write(files, tmp_path, "zip")
    found = inspect_dataset(path, tmp_path / "out", caps=Caps())
    assert found.folders == {"train": "train", "test": "test", "held_out": "val"}
    assert found.held_out == {"cat": 1, "dog": 1}
    assert (found.overlap.count, found.held_out_overlap.count, found.conflicting.count) == (1, 1, 2)
    assert {part: doubles.count for part, doubles in found.repeated.items()} == {"train": 2, "test": 0, "held_out": 0}
    codes = ["data_conflicting_labels", "data_test_in_train", "data_held_out_in_train"]
    assert [warning.code for warning in found.warnings] == codes
    assert "train/cat/1.png is train/dog/cat.png" in found.warnings[0].message
    assert all(warning.remedy for warning in found.warnings)
    dataset = data.load("mine", path)
    assert dataset.warnings == found.warnings
    assert dataset.held_out is not None
    assert len(dataset.held_out) == 2
