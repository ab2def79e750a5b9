"""The forms that a data set may have: each gives the same images, and hostile ones are refused for what they are."""

import pickle
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core import data
from core.data import memory
from core.data.safe_zip import Caps
from core.intake.inspect import inspect_dataset
from core.schema.dataset_spec import DatasetSpec
from core.schema.errors import BadDataset, UserError
from tests.support.image_formats import CLASSES, FORMATS, files, npy, parquet, png, python2_pickle, twenty, zip_of
from tests.support.images import image, two_classes, write

_OF = twenty()


@pytest.mark.parametrize("how", list(FORMATS))
def test_the_same_images_are_the_same_data_set_in_every_form(how: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    expected = data.load("mine", write(files(_OF), tmp_path / "files", "zip"))
    (tmp_path / "other").mkdir()
    found = data.load("mine", FORMATS[how](_OF, tmp_path / "other"))
    assert found.classes == CLASSES
    assert (len(found.train), len(found.test)) == (12, 8)
    assert found.sha256() == expected.sha256()
    assert found.unread == 0


@pytest.mark.parametrize("how", [how for how in FORMATS if "folder" not in how])
def test_the_inspection_takes_what_a_run_takes(how: str, tmp_path: Path) -> None:
    found = inspect_dataset(FORMATS[how](_OF, tmp_path), tmp_path / "out", caps=Caps())
    assert (found.classes, found.shape) == (CLASSES, (3, 32, 32))
    assert (found.train, found.test) == ({"cat": 6, "dog": 6}, {"cat": 4, "dog": 4})
    assert (found.refused, found.unread, found.warnings) == (0, 0, ())
    assert found.proposal is None
    assert len(found.thumbnails) == 4


@pytest.mark.parametrize("how", ["files", "arrays", "parquet"])
def test_a_drawn_test_part_is_the_same_in_every_form_and_for_every_seed(how: str, tmp_path: Path) -> None:
    pixels, labels = _OF.pixels["train"], _OF.labels["train"]
    named = {f"{CLASSES[label]}/{row:03}.png": png(pixels[row]) for row, label in enumerate(labels)}
    (tmp_path / "files").mkdir()
    expected = data.load("mine", write(named, tmp_path / "files", "zip"), test_share=0.25)
    assert [len(expected.train), len(expected.test)] == [8, 4]
    assert expected.test.labels.bincount().tolist() == [2, 2]
    if how == "files":
        path = write({f"pets/{name}": content for name, content in named.items()}, tmp_path, "folder") / "pets"
    elif how == "arrays":
        path = zip_of(tmp_path, "a.npz", **{"X.npy": npy(pixels), "Y.npy": npy(labels), "classes.npy": _names()})
    else:
        path = tmp_path / "all.parquet"
        path.write_bytes(parquet(pixels, labels))
    assert data.load("mine", path, test_share=0.25).sha256() == expected.sha256()


def _names() -> bytes:
    return npy(np.array(CLASSES))


def test_a_test_part_is_never_drawn_unasked_nor_beside_one(tmp_path: Path) -> None:
    path = write({f"{label}/{n}.png": image(n) for label in CLASSES for n in range(4)}, tmp_path, "zip")
    with pytest.raises(BadDataset, match="there is no folder 'train/'") as caught:
        data.load("mine", path)
    assert "--test-share 0.2" in caught.value.hint
    with pytest.raises(BadDataset, match="has its own test part, 'test/'") as caught:
        data.load("mine", write(two_classes(), tmp_path, "zip"), test_share=0.2)
    assert caught.value.field == "test_share"
    with pytest.raises(BadDataset, match="has its own test part"):
        data.load("mine", FORMATS["an npz"](_OF, tmp_path), test_share=0.2)


def test_a_class_of_one_image_leaves_none_to_draw(tmp_path: Path) -> None:
    path = write({"cat/1.png": image(1), "dog/1.png": image(2), "dog/2.png": image(3)}, tmp_path, "zip")
    with pytest.raises(BadDataset, match="class 'cat' has a single image"):
        data.load("mine", path, test_share=0.5)


def test_the_drawn_part_is_recorded_in_the_report(tmp_path: Path) -> None:
    path = write({f"{label}/{n}.png": image(10 * n) for label in CLASSES for n in range(5)}, tmp_path, "zip")
    found = inspect_dataset(path, tmp_path / "out", caps=Caps(), spec=DatasetSpec(test_share=0.2))
    assert (found.test_share, found.test, found.train) == (0.2, {"cat": 1, "dog": 1}, {"cat": 4, "dog": 4})


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"),
        ("image", "label"),
        ("x", "y"),
        ("data", "targets"),
        ("X_train", "y_train"),
        ("train_images", "train_labels"),
        ("trainX", "trainY"),
    ],
)
def test_arrays_are_known_by_their_usual_names(images: str, labels: str, tmp_path: Path) -> None:
    members = {f"{images}.npy": npy(_OF.pixels["train"]), f"{labels}.npy": npy(_OF.labels["train"].astype(np.uint8))}
    found = data.load("mine", zip_of(tmp_path, "a.npz", **members), test_share=0.25)
    assert (found.classes, len(found.train), len(found.test)) == (("0", "1"), 8, 4)


def test_validation_arrays_beside_test_arrays_are_the_held_out_part(tmp_path: Path) -> None:
    members = {
        f"{part}_{role}.npy": npy(array[:4])
        for part in ("train", "val", "test")
        for role, array in (("images", _OF.pixels["train"]), ("labels", _OF.labels["train"]))
    }
    found = data.load("mine", zip_of(tmp_path, "a.npz", **members))
    assert found.held_out is not None
    assert (len(found.train), len(found.test), len(found.held_out)) == (4, 4, 4)


def test_class_folders_that_are_numbers_are_named_by_a_file(tmp_path: Path) -> None:
    named = {f"{part}/{number}/0.png": image(number) for part in ("train", "test") for number in range(11)}
    names = [f"{chr(ord('k') - number)}" for number in range(11)]
    path = write(named | {"classes.txt": "\n".join(names).encode()}, tmp_path, "zip")
    found = data.load("mine", path)
    assert found.classes == tuple(names)
    assert dict(zip(found.test.labels.tolist(), found.test.first(11).pixels[:, 0, 0, 0].tolist(), strict=True)) == {
        number: number for number in range(11)
    }
    assert found.unread == 0
    with pytest.raises(BadDataset, match="names 3 classes, so there is no name for the folder '10'"):
        data.load("mine", write(named | {"classes.txt": b"a\nb\nc"}, tmp_path, "zip"))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("class_names.json", b'{"0": "cat", "2": "dog"}', "its labels are not the numbers from 0 to 1"),
        ("class_names.json", b'["cat", 3]', "a name is missing or is no text"),
        ("class_names.json", b"[" * 100_000, "it is nested too deeply"),
        ("classes.txt", b"cat\n\ndog", "a name is missing"),
        ("classes.txt", b"cat\ncat", "the name cat occurs twice"),
        ("classes.txt", b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_a_file_of_class_names_that_cannot_be_used_is_refused(
    file: str, content: bytes, said: str, tmp_path: Path
) -> None:
    members = {"x.npy": npy(_OF.pixels["train"]), "y.npy": npy(_OF.labels["train"]), file: content}
    with pytest.raises(BadDataset, match="cannot read the names of the classes") as caught:
        data.load("mine", zip_of(tmp_path, "a.zip", **members), test_share=0.2)
    assert said in caught.value.message


def _header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _pair(images: bytes, labels: bytes | None = None) -> Callable[[Path], Path]:
    labels = npy(_OF.labels["train"]) if labels is None else labels
    return lambda folder: zip_of(folder, "a.npz", **{"images.npy": images, "labels.npy": labels})


def _tar_with(change: Callable[[tarfile.TarInfo], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(two_classes(), folder, "tar")
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("train/cat/9.png")
            change(member)
            archive.addfile(member)
        return path

    return make


def _as(kind: bytes, link: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, link

    return change


def _rename(name: str) -> Callable[[tarfile.TarInfo], None]:
    return lambda member: setattr(member, "name", name)


def _huge_description(folder: Path) -> Path:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    path = folder / "a.tar"
    path.write_bytes(write(two_classes(), folder, "tar").read_bytes()[:1024] + header.tobuf(tarfile.GNU_FORMAT))
    return path


def _rows(**columns: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.parquet").write_bytes(parquet(_OF.pixels["train"], **columns))  # type: ignore[arg-type]
        return folder / "a.parquet"

    return make


def _cifar(batch: bytes) -> Callable[[Path], Path]:
    return lambda folder: write({"data_batch_1": batch, "test_batch": batch}, folder, "zip")


class _Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


_TWELVE = _OF.labels["train"].tolist()
_PIXELS = npy(_OF.pixels["train"])
_FLAT = _OF.pixels["train"].reshape(12, -1)
# What is made -> what is said of it.
_HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an array that unpacks to a thousand times its size": (
        _pair(_header("(4096, 64, 64, 3)") + bytes(50_331_648)),
        "unpacks to more than 200 times",
    ),
    "a header that promises more than there is": (
        _pair(_header("(9999999999, 32, 32, 3)")),
        "is of shape (9999999999, 32, 32, 3), which takes",
    ),
    "a header with a negative length": (_pair(_header("(-1, 32, 32, 3)")), "is of shape (-1, 32, 32, 3)"),
    "a header that is code": (_pair(_header("__import__('os').system('true')")), "the header of images is damaged"),
    "a header of nested brackets": (_pair(_header("(" * 100)), "the header of images is damaged"),
    "pickled objects": (_pair(_header("(12,)", "|O") + pickle.dumps([_Canary()])), "allow_pickle=False"),
    "a pickle in place of an array": (_pair(pickle.dumps(_Canary())), "the header of images is damaged"),
    "numbers from 0 to 1": (_pair(npy(_OF.pixels["train"] / 255)), "multiply numbers from 0 to 1 by 255"),
    "one label for two images": (
        _pair(_PIXELS, npy(np.zeros(6, int))),
        "12 images, but labels are int64 of shape (6,)",
    ),
    "labels as vectors": (_pair(_PIXELS, npy(np.eye(2, dtype=int)[_TWELVE])), "labels.argmax(1)"),
    "negative labels": (_pair(_PIXELS, npy(np.array(_TWELVE) - 1)), "go from -1 to 0: a negative label is none"),
    "labels with a gap": (_pair(_PIXELS, npy(np.array(_TWELVE) * 2)), "no image in a.npz has the label 1"),
    "labels that are no classes": (_pair(_PIXELS, npy(np.array(_TWELVE) + 2**40)), "they are no numbers of classes"),
    "channels that could be two axes": (
        _pair(npy(_OF.pixels["train"][:, :3])),
        "could be the second axis as well as the last",
    ),
    "images as rows": (_pair(npy(_FLAT)), "not examples x height x width x channels"),
    "images alone": (
        lambda at: zip_of(at, "a.npz", **{"images.npy": _PIXELS}),
        "it has no array named labels, only images",
    ),
    "two arrays of images": (
        lambda at: zip_of(
            at, "a.npz", **{"images.npy": _PIXELS, "data.npy": _PIXELS, "labels.npy": npy(np.array(_TWELVE))}
        ),
        "images and data could each be the images",
    ),
    "a whole set beside parts": (
        lambda at: zip_of(
            at,
            "a.npz",
            **{f"{name}.npy": each for name in ("x", "x_train") for each in [_PIXELS]}
            | {f"{name}.npy": npy(np.array(_TWELVE)) for name in ("y", "y_train")},
        ),
        "x could be the whole set, beside x_train",
    ),
    "one array alone": (lambda at: _written(at / "x_train.npy", _PIXELS), "it has no array named labels, only x_train"),
    "images beside arrays": (
        lambda at: write({**files(_OF), "x.npy": _PIXELS, "y.npy": npy(np.array(_TWELVE))}, at, "zip"),
        "data.zip holds arrays as well as images",
    ),
    "rows without labels": (_rows(labels=[None, *_TWELVE[1:]]), "row 0 has no label"),
    "labels beyond the names": (
        _rows(labels=[7, *_TWELVE[1:]]),
        "labels in a.parquet go up to 7, but 2 classes are named",
    ),
    "unlabelled rows": (_rows(labels=[-1, *_TWELVE[1:]]), "a negative label is none"),
    "images that are null": (_rows(labels=_TWELVE, images=[None] * 12), "the image is missing: its value is null"),
    "images that are paths": (
        _rows(labels=_TWELVE, images=[{"bytes": None, "path": "/etc/passwd"}] * 12),
        "only the path /etc/passwd of the image is stored",
    ),
    "half a parquet file": (
        lambda at: _written(at / "a.parquet", parquet(_OF.pixels["train"], _TWELVE)[:900]),
        "cannot read a.parquet",
    ),
}
# The same of files that have a test part.
_HOSTILE_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a link in a tar": (_tar_with(_as(tarfile.SYMTYPE, "/etc/passwd")), "train/cat/9.png is a link in the archive"),
    "a hard link in a tar": (
        _tar_with(_as(tarfile.LNKTYPE, "train/cat/0.png")),
        "train/cat/9.png is a link in the archive",
    ),
    "a device in a tar": (_tar_with(_as(tarfile.CHRTYPE)), "train/cat/9.png is a device"),
    "a pipe in a tar": (_tar_with(_as(tarfile.FIFOTYPE)), "train/cat/9.png is a device"),
    "a name in a tar that leads out": (_tar_with(_rename("../9.png")), "can lead out of the archive"),
    "an absolute name in a tar": (_tar_with(_rename("/etc/9.png")), "is absolute"),
    "a description of a TiB in a tar": (_huge_description, "a header describes a file in more than a MiB"),
    "a pickle that calls": (_cifar(pickle.dumps({"data": _Canary(), "labels": _TWELVE})), "its data are not an array"),
    "a pickle that runs commands": (
        _cifar(b"cos\nsystem\n(S'true'\ntR."),
        "it is a pickle that would call os.system, which is not done",
    ),
    "a pickle of objects in an array": (
        _cifar(pickle.dumps({"data": np.array([_Canary()] * 12, dtype=object), "labels": _TWELVE})),
        "its data are not an array of bytes",
    ),
    "a pickle of other images": (
        _cifar(pickle.dumps({"data": _FLAT[:, :100], "labels": _TWELVE})),
        "its data are not rows of 3,072 bytes",
    ),
    "a pickle with too few bytes": (
        _cifar(python2_pickle(_FLAT, _TWELVE).replace(b"K\x0cM", b"K\x0dM")),
        "fewer or more than its shape says",
    ),
    "a pickle with too few labels": (_cifar(python2_pickle(_FLAT, _TWELVE[:5])), "it has 12 images, but 5 labels"),
    "no pickle": (_cifar(b"\xff\xd8\xff"), "it is not a pickle that can be read"),
    "binary records cut off": (
        lambda at: write({"data_batch_1.bin": bytes(3074), "test_batch.bin": bytes(3073)}, at, "zip"),
        "its 3,074 bytes are no multiple of 3,073",
    ),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("what", [*_HOSTILE, *_HOSTILE_FILES])
def test_a_hostile_file_is_refused_for_what_it_is(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, said = (_HOSTILE | _HOSTILE_FILES)[what]
    spec = DatasetSpec(test_share=0.25) if what in _HOSTILE else DatasetSpec()
    with pytest.raises(UserError) as caught:
        inspect_dataset(make(tmp_path), tmp_path / "out", caps=Caps(), spec=spec)
    assert said in caught.value.message
    assert caught.value.hint
    assert caught.value.field in ("dataset", "file")
    assert "executed" not in capfd.readouterr().out


def test_arrays_larger_than_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FORMATS["an npz"](_OF, tmp_path)
    monkeypatch.setattr(memory, "available_memory", lambda: 50_000)
    with pytest.raises(BadDataset, match="more than this machine's memory can hold") as caught:
        data.load("mine", path)
    assert "class folders" in caught.value.hint


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMATS["parquet in a folder"](_OF, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadDataset, match="pyarrow, which is not installed here") as caught:
        data.load("mine", path)
    assert "pip install pyarrow" in caught.value.hint


def test_parquet_columns_without_metadata_are_found_or_refused_by_name(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(_OF.pixels["train"], _TWELVE, names=None))
    assert data.load("mine", path, test_share=0.25).classes == ("0", "1")
    columns = {"img": [png(each) for each in _OF.pixels["train"]], "fine": _TWELVE, "coarse": _TWELVE}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(BadDataset, match="each of the columns fine and coarse could be the labels"):
        data.load("mine", path, test_share=0.25)


def test_transparent_pixels_of_arrays_are_put_on_white(tmp_path: Path) -> None:
    pixels = np.concatenate([_OF.pixels["train"], np.zeros((12, 32, 32, 1), np.uint8)], axis=3)
    found = data.load("mine", _pair(npy(pixels))(tmp_path), test_share=0.25)
    assert found.train.first(8).pixels.unique().tolist() == [255]
    assert [warning.code for warning in found.warnings][-1] == "data_transparent"


def test_a_damaged_header_in_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = write(two_classes(), tmp_path, "tar")
    content = bytearray(path.read_bytes())
    at = content.find(b"test/")
    content[at : at + 5] = b"xxxxx"
    path.write_bytes(content)
    with pytest.raises(BadDataset, match="a header is damaged"):
        data.load("mine", path)


def test_an_inflated_array_is_never_larger_than_its_directory_says(tmp_path: Path) -> None:
    path = _pair(_PIXELS)(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"images.npy") - 46 + 24
    content[at : at + 4] = struct.pack("<I", 200)
    path.write_bytes(content)
    with pytest.raises(BadDataset, match=r"cannot read|CRC"):
        data.load("mine", path, test_share=0.25)
