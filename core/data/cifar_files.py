"""The own files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), and files of one's own in the same form.

Both versions are read: the pickles of the one for Python, as data that nothing of is ever executed
(`core.inert_pickle`), and the binary one. `core.data.cifar` reads the official data sets by their names.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from core.data.class_names import check_names, find_names_file, read_names
from core.data.file_tree import Entry, FileTree
from core.data.image_source import Item, place_rows, row_name
from core.data.safe_zip import show
from core.data.survey import Survey
from core.inert_pickle import HarmfulPickle, Inert, Unpickler, UnreadablePickle
from core.schema.errors import BadDataset
from core.schema.inspection_report import DatasetFormat, PartName

_SHAPE = (3, 32, 32)
_PIXELS = prod(_SHAPE)
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_META = {"batches.meta", "meta"}
_TEXTS = {"batches.meta.txt", "fine_label_names.txt"}
_OTHERS = {"readme.html", "coarse_label_names.txt", "file.txt~", "cifar-readme.html"}
_REMEDY = "download the data set again, or store the images as files in class folders"
_LARGEST = 256 * 2**20


def find_cifar_files(names: Iterable[str]) -> dict[str, PartName]:
    """Find files that are named as CIFAR's, each with its part; nothing where there are none."""
    found = {name: PurePosixPath(name).name for name in names}
    ten: dict[str, PartName] = {
        **dict.fromkeys([*_BATCHES, *(f"{batch}.bin" for batch in _BATCHES)], "train"),
        "test_batch": "test",
        "test_batch.bin": "test",
    }
    if any(file in ten for file in found.values()):
        return {name: ten[file] for name, file in found.items() if file in ten}
    for suffix, beside in (("", "meta"), (".bin", "fine_label_names.txt")):
        hundred: dict[str, PartName] = {f"train{suffix}": "train", f"test{suffix}": "test"}
        if {*hundred, beside} <= set(found.values()):
            return {name: hundred[file] for name, file in found.items() if file in hundred}
    return {}


class CifarFiles:
    """The images of CIFAR's files; implements `core.data.image_source.ImageSource`. Raises BadDataset."""

    format: DatasetFormat = "cifar"

    def __init__(
        self,
        where: str,
        tree: FileTree,
        files: Sequence[Entry],
        parts: Mapping[str, PartName],
        survey: Survey,
        *,
        needed: Sequence[PartName] = ("train", "test"),
        test_share: float | None = None,
    ) -> None:
        """Where: name of the data set, for errors. parts: the files of `find_cifar_files`. survey: counts others."""
        by_name = {entry.name: PurePosixPath(entry.name).name for entry in files}
        names_file = next((name for name, file in by_name.items() if file in _META | _TEXTS), None)
        names_file = names_file or find_names_file(files)
        for name, file in by_name.items():
            if name not in parts and name != names_file and file not in _OTHERS | _META | _TEXTS:
                survey.add_unread(name, "it is not one of the files of CIFAR")
        large = next((entry.name for entry in files if entry.name in parts and entry.size > _LARGEST), None)
        if large:
            raise _bad(large, f"it is larger than {_LARGEST // 2**20} MiB")
        names: Sequence[str] = ()
        read: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for entry, content in tree.read(lambda entry: entry.name in parts or entry.name == names_file):
            if entry.name == names_file:
                names = _names(entry.name, by_name[entry.name], content)
            elif by_name[entry.name].endswith(".bin"):
                read[entry.name] = _read_binary(entry.name, content)
            else:
                read[entry.name] = _read_pickle(entry.name, content)
        self._pixels: dict[PartName, np.ndarray] = {}
        labels: dict[PartName, np.ndarray] = {}
        for part in dict.fromkeys(parts.values()):
            ordered = [read[name] for name in sorted(read) if parts[name] == part]
            self._pixels[part] = np.concatenate([pixels for pixels, _ in ordered])
            labels[part] = np.concatenate([numbers for _, numbers in ordered])
        self.layout, self._places = place_rows(
            where, labels, names=names, names_file=names_file, needed=needed, test_share=test_share
        )

    def __len__(self) -> int:
        return len(self._places)

    def items(self) -> Iterator[Item]:
        """Yield the images of all parts."""
        for part, pixels in self._pixels.items():
            for row, image in enumerate(pixels):
                if place := self._places.get(name := row_name(part, row)):
                    yield Item(name, place, image.transpose(1, 2, 0))


def _names(name: str, file: str, content: bytes) -> Sequence[str]:
    """Read the names of the classes."""
    if file not in _META:
        return read_names(name, content)
    found = _unpickle(name, content)
    for key in ("label_names", "fine_label_names"):
        if isinstance(names := found.get(key), list):
            return check_names(name, [_text(text) for text in names])
    raise _bad(name, "it does not name the classes")


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _read_binary(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read records of one label (CIFAR-10) or two (CIFAR-100: coarse and fine), and the pixels, a byte each."""
    before = 2 if PurePosixPath(name).name in ("train.bin", "test.bin") else 1
    record = before + _PIXELS
    if not content or len(content) % record:
        raise _bad(name, f"its {len(content):,} bytes are no multiple of {record:,}, the bytes of a record")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, before:].reshape(-1, *_SHAPE), rows[:, before - 1].astype(np.int64)


def _read_pickle(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    found = _unpickle(name, content)
    pixels = _array(name, found.get("data"))
    labels = next((found[key] for key in ("labels", "fine_labels") if key in found), None)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise _bad(name, "its labels are not a list of numbers")
    if len(labels) != len(pixels):
        raise _bad(name, f"it has {len(pixels)} images, but {len(labels)} labels")
    # Larger numbers than a class may have are refused later, with a reason.
    return pixels, np.array([min(max(label, -1), 2**31) for label in labels], dtype=np.int64)


def _unpickle(name: str, content: bytes) -> Mapping[Any, Any]:
    try:
        found = Unpickler(io.BytesIO(content), len(content), builders={"_codecs.encode": _encode}).load()
    except HarmfulPickle as error:
        raise _bad(name, f"it is a pickle that would call {error.name}, which is not done") from error
    except UnreadablePickle as error:
        raise _bad(name, f"it is not a pickle that can be read: {error}") from error
    if not isinstance(found, dict):
        raise _bad(name, "it does not hold a dictionary")
    return {_text(key): value for key, value in found.items()}


def _encode(arguments: tuple[Any, ...]) -> bytes:
    """Make the bytes that Python 3 stores as a text for Python 2. Raises UnreadablePickle."""
    match arguments:
        case (str(text), "latin1"):
            return text.encode("latin-1")
    raise UnreadablePickle("bytes are stored as a text in an unknown way")


def _array(name: str, value: Any) -> np.ndarray:
    """Make an array of the record of one: numpy's own state, in which the numbers are bytes. Raises BadDataset."""
    state = value.state if isinstance(value, Inert) and value.name.endswith("._reconstruct") else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise _bad(name, "its data are not an array")
    _, shape, dtype, is_fortran, raw = state
    stored = dtype.arguments if isinstance(dtype, Inert) and dtype.name == "numpy.dtype" else None
    if not isinstance(stored, tuple) or stored[:1] not in (("u1",), ("|u1",)):
        raise _bad(name, "its data are not an array of bytes (uint8)")
    if is_fortran or not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != _PIXELS:
        raise _bad(name, f"its data are not rows of {_PIXELS:,} bytes: 3 x 32 x 32 pixels")
    rows = shape[0]
    content = _bytes(raw, rows * _PIXELS) if type(rows) is int and 0 < rows <= _LARGEST // _PIXELS else None
    if content is None:
        raise _bad(name, "the bytes of its data are fewer or more than its shape says")
    return np.frombuffer(content, np.uint8).reshape(-1, *_SHAPE)


def _bytes(raw: Any, size: int) -> bytes | None:
    """Return bytes that Python 2 or 3 has stored, if they are this many.

    Python 2 has only texts, which are read as UTF-8 where they happen to be that, and else as Latin-1.
    """
    if isinstance(raw, bytes):
        return raw if len(raw) == size else None
    if not isinstance(raw, str):
        return None
    for encoding in ("latin-1", "utf-8"):
        try:
            content = raw.encode(encoding)
        except UnicodeEncodeError:
            continue
        if len(content) == size:
            return content
    return None


def _bad(where: str, reason: str) -> BadDataset:
    return BadDataset(f"cannot read {show(where)}: {reason}", hint=_REMEDY, field="dataset")
