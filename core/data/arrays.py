"""Labelled images in NumPy files: a `.npz` archive, or `.npy` files in a folder or archive.

Arrays are found by their names, such as `images` and `labels`, or `x_train`, `y_train`, `x_test` and `y_test`. Only
plain numbers and texts are read: nothing is ever unpickled, and a header is checked against the bytes that follow it
before anything is allocated.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from tokenize import TokenError

import numpy as np
import torch

from core.data.class_folders import PART_NAMES
from core.data.class_names import STEMS, check_names, find_names_file, read_names
from core.data.file_tree import Entry, FileTree, open_tree
from core.data.image_source import Item, place_rows, row_name
from core.data.memory import fits_memory
from core.data.safe_zip import Caps, show
from core.data.split import Split
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import DatasetFormat, PartName

_REMEDY = (
    "write the file with numpy.savez(path, images=images, labels=labels), or x_train, y_train, x_test and y_test: "
    "images uint8 of examples x height x width x channels, labels integers"
)
_LONGEST_HEADER = 10_000
_PARTS = "|".join(sorted(PART_NAMES, key=len, reverse=True))
_NAME = re.compile(
    rf"(?P<before>{_PARTS})?(?:(?P<images>images?|imgs?|data|pixels|inputs?|x)|(?P<labels>labels?|targets?|y))"
    rf"(?P<after>{_PARTS})?"
)


def is_arrays(path: Path) -> bool:
    """Return whether a path is a file of arrays, by its suffix or its contents; one that is refused included."""
    if path.suffix in {".npz", ".npy", ".pickle", ".pkl"}:
        return True
    # A service keeps an upload under another name.
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(is_array_file(name) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def is_array_file(name: str) -> bool:
    """Whether a file in a folder or archive is an array, by its name."""
    return name.lower().endswith(".npy")


def is_part_of_a_set(name: str) -> bool:
    """Whether a file in a folder or archive is an array that is named as images or labels."""
    return is_array_file(name) and _role(name) is not None


@dataclass
class _Pair:
    """The arrays of a part."""

    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    names: dict[str, str] = field(default_factory=dict)
    """The names of the two."""


class Arrays:
    """Images and labels in arrays; implements `core.data.image_source.ImageSource`. Raises BadDataset."""

    format: DatasetFormat = "arrays"

    def __init__(
        self,
        where: str,
        tree: FileTree,
        files: Sequence[Entry],
        survey: Survey,
        *,
        needed: Sequence[PartName] = ("train", "test"),
        test_share: float | None = None,
    ) -> None:
        """Where: name of the data set, for errors. survey: counts the files that are not read."""
        pairs, names, names_file = _read(where, tree, files, survey)
        parts = _name_parts(where, pairs)
        self._images = {part: _as_pixels(where, pairs[key]) for part, key in parts.items()}
        rows = place_rows(
            where,
            {part: _as_labels(where, pairs[key]) for part, key in parts.items()},
            names=names,
            names_file=names_file,
            needed=needed,
            test_share=test_share,
        )
        self.layout, self._places = rows

    def __len__(self) -> int:
        return len(self._places)

    def items(self) -> Iterator[Item]:
        """Yield the images of all parts."""
        for part, images in self._images.items():
            for row, pixels in enumerate(images):
                if place := self._places.get(name := row_name(part, row)):
                    yield Item(name, place, pixels)


def load(path: Path) -> Split:
    """Load the images and labels of a file without parts, in their order. Raises BadDataset."""
    if not zipfile.is_zipfile(path):
        raise _bad(path.name, _why_no_archive(path))
    try:
        tree = open_tree(path, Caps(total_bytes=2**40, member_bytes=2**40))
        pairs, _, _ = _read(path.name, tree, [entry for entry in tree.entries() if not entry.is_folder], Survey())
    except BadDataset as error:
        raise (
            error if error.message.startswith("cannot read " + path.name) else _bad(path.name, error.message)
        ) from error
    if len(pairs) > 1:
        raise _bad(path.name, f"it has the parts {' and '.join(str(part) for part in pairs)}, but may have one")
    pair = next(iter(pairs.values()), _Pair())
    images, labels = _as_pixels(path.name, pair), _as_labels(path.name, pair)
    if images.ndim == 4 and images.shape[3] == 4:
        raise _bad(path.name, f"images have an alpha channel: they are of shape {images.shape}")
    stacked = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    # A copy, since the arrays lie in the bytes of the file, which may not be changed.
    return Split(torch.from_numpy(np.array(stacked, order="C")), torch.from_numpy(labels))


def _why_no_archive(path: Path) -> str:
    try:
        with path.open("rb"):
            return "it is not a .npz archive"
    except FileNotFoundError:
        return "the file does not exist"
    except OSError as error:
        return f"{error.strerror}: this user must be able to read it"


def _read(
    where: str, tree: FileTree, files: Sequence[Entry], survey: Survey
) -> tuple[dict[str | None, _Pair], Sequence[str], str | None]:
    """Read the arrays of each part, and the names of the classes with what holds them. Raises BadDataset."""
    wanted: dict[str, tuple[str | None, str]] = {}
    names_file = find_names_file(files)
    names_array = None
    for entry in files:
        stem = PurePosixPath(entry.name).stem.casefold()
        if is_array_file(entry.name) and stem in STEMS:
            names_array = entry.name
        elif is_array_file(entry.name) and (found := _role(entry.name)):
            wanted[entry.name] = found
        elif entry.name != names_file:
            survey.add_unread(entry.name, "it is not an array that is named as images or labels")
    if names_array and names_file:
        raise _bad(where, f"the names of the classes are in {show(names_array)} and in {show(names_file)}")
    size = sum(entry.size for entry in files if entry.name in wanted or entry.name == names_array)
    if not fits_memory(size):
        raise BadDataset(
            f"the arrays in {where} take {size / 2**30:.3g} GiB, more than this machine's memory can hold",
            hint="store the images as files in class folders: those are streamed, from a folder, a zip or a plain tar",
            field="dataset",
        )
    pairs: dict[str | None, _Pair] = {}
    names: Sequence[str] = ()
    chosen = {*wanted, *filter(None, (names_file, names_array))}
    for entry, content in tree.read(lambda entry: entry.name in chosen):
        if entry.name == names_file:
            names = read_names(entry.name, content)
        elif entry.name == names_array:
            names = check_names(entry.name, _texts(where, entry.name, content))
        else:
            part, role = wanted[entry.name]
            pair = pairs.setdefault(part, _Pair())
            shown = PurePosixPath(entry.name).stem
            if role in pair.names:
                raise _bad(where, f"{show(pair.names[role])} and {show(shown)} could each be the {role}")
            pair.names[role] = shown
            array = _array(where, shown, content)
            if role == "images":
                pair.images = array
            else:
                pair.labels = array
    only = ", ".join(PurePosixPath(name).stem for name in wanted) or _listed(files)
    for pair in pairs.values() or [_Pair()]:
        for role in ("images", "labels"):
            if role not in pair.names:
                raise _bad(where, f"it has no array named {role}, only {only}")
    return pairs, names, names_array or names_file


def _listed(files: Sequence[Entry]) -> str:
    return ", ".join(show(PurePosixPath(entry.name).stem) for entry in files[:10]) or "nothing"


def _role(name: str) -> tuple[str | None, str] | None:
    """Tell the part (None for none) and the role of an array by its name; None for one that has no role."""
    path = PurePosixPath(name)
    found = _NAME.fullmatch(re.sub(r"[^a-z0-9]", "", path.stem.casefold()))
    if found is None or (found["before"] and found["after"]):
        return None
    part = PART_NAMES.get(found["before"] or found["after"] or path.parent.name.casefold())
    return part, "images" if found["images"] else "labels"


def _name_parts(where: str, pairs: Mapping[str | None, _Pair]) -> dict[PartName, str | None]:
    """Return the parts of the data set, each with the key of its arrays. Raises BadDataset."""
    if None in pairs and len(pairs) > 1:
        whole = pairs[None].names["images"]
        other = next(pair.names["images"] for part, pair in pairs.items() if part is not None)
        raise _bad(where, f"{show(whole)} could be the whole set, beside {show(other)}: leave one of them out")
    if None in pairs:
        return {"train": None}
    roles: dict[PartName, str | None] = {"train": "train"} if "train" in pairs else {}
    if "test" in pairs or "val" in pairs:
        roles["test"] = "test" if "test" in pairs else "val"
    if "test" in pairs and "val" in pairs:
        roles["held_out"] = "val"
    return roles


def _header(where: str, name: str, file: io.BytesIO) -> tuple[tuple[int, ...], np.dtype, bool]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except (ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise _bad(where, f"the header of {show(name)} is damaged") from error
    return shape, dtype, fortran


def _array(where: str, name: str, content: bytes) -> np.ndarray:
    """Read an array without copying it. Raises BadDataset."""
    file = io.BytesIO(content)
    shape, dtype, fortran = _header(where, name, file)
    if dtype.hasobject:
        raise _bad(
            where, f"{show(name)} holds pickled Python objects, which are never read (allow_pickle=False in numpy)"
        )
    there, stated = len(content) - file.tell(), prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or stated != there:
        raise _bad(where, f"{show(name)} is of shape {shape}, which takes {stated:,} bytes, but {there:,} are there")
    flat = np.frombuffer(content, dtype, offset=file.tell()) if there else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _texts(where: str, name: str, content: bytes) -> Sequence[object]:
    found = _array(where, name, content)
    if found.dtype.kind not in "US" or found.ndim != 1:
        raise _bad(where, f"{show(name)} should be texts, but is {found.dtype} of shape {found.shape}")
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in found.tolist()]


def _as_pixels(where: str, pair: _Pair) -> np.ndarray:
    """Return images as (examples, height, width) or (examples, height, width, 3 or 4) uint8. Raises BadDataset."""
    images = pair.images
    assert images is not None, "_read refuses a part without images"
    name = pair.names["images"]
    found = f"{show(name)} are {images.dtype} of shape {images.shape}"
    if images.dtype != np.uint8:
        remedy = ": multiply numbers from 0 to 1 by 255, and round them to uint8" if images.dtype.kind == "f" else ""
        raise _bad(where, f"{found}, not uint8{remedy}")
    if not images.size:
        raise _bad(where, f"there are no images: they are of shape {images.shape}")
    if images.ndim == 3:
        return images
    first, last = (images.ndim == 4 and images.shape[axis] in (1, 3, 4) for axis in (1, 3))
    if first and last:
        raise _bad(where, f"{found}: channels could be the second axis as well as the last")
    if not (first or last):
        raise _bad(where, f"{found}, not examples x height x width x channels")
    images = images if last else images.transpose(0, 2, 3, 1)
    return images[:, :, :, 0] if images.shape[3] == 1 else images


def _as_labels(where: str, pair: _Pair) -> np.ndarray:
    """Return labels as (examples,) int64. Raises BadDataset."""
    labels, images = pair.labels, pair.images
    assert labels is not None, "_read refuses a part without labels"
    assert images is not None, "_read refuses a part without images"
    name = pair.names["labels"]
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if not np.issubdtype(labels.dtype, np.integer) or column.shape != images.shape[:1]:
        one_hot = ": give the number of the class, as labels.argmax(1) does" if labels.ndim == 2 else ""
        raise _bad(where, f"{len(images)} images, but {show(name)} are {labels.dtype} of shape {labels.shape}{one_hot}")
    if column.dtype == np.uint64 and column.size and int(column.max()) >= 2**63:
        raise _bad(where, f"{show(name)} go up to {int(column.max())}")
    return column.astype(np.int64)


def _bad(where: str, reason: str) -> BadDataset:
    return BadDataset(f"cannot read {show(where)}: {reason}", hint=_REMEDY, field="dataset")
