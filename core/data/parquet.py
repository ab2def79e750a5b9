"""Labelled images in Parquet files, as the data sets of the Hugging Face Hub are stored.

Each row has an image, as the bytes of an image file (alone, or as the field `bytes` of a struct), and the number of its
class. The schema's metadata name the columns and the classes; without them, columns are found by their types. The name
of a file, or of its folder, tells its part, as in `train-00000-of-00002.parquet`.

pyarrow reads the files. It is needed here alone, and imported where a file of this kind is met.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from core.data.class_folders import PART_NAMES
from core.data.class_names import check_names, find_names_file, read_names
from core.data.file_tree import Entry, FileTree, SingleFile
from core.data.image_source import Item, place_rows, row_name
from core.data.memory import fits_memory
from core.data.safe_zip import show
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import DatasetFormat, PartName

_REMEDY = (
    "write it with the datasets library: a column image of type Image, whose bytes are embedded, and a column label of "
    "type ClassLabel"
)
_ROWS_AT_ONCE = 64
_IMAGE_NAMES = ("image", "img", "images", "picture")
_LABEL_NAMES = ("label", "labels")


class _Columns(NamedTuple):
    """What is read of a file."""

    image: str
    is_struct: bool
    label: str
    names: tuple[str, ...]
    """Of the classes; empty where the schema does not name them."""


class ParquetFiles:
    """The rows of Parquet files; implements `core.data.image_source.ImageSource`. Raises BadDataset."""

    format: DatasetFormat = "parquet"

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
        self._where, self._tree = where, tree
        self._arrow = _import()
        shards = sorted(entry.name for entry in files if is_parquet_file(entry.name))
        names_file = find_names_file(files)
        for entry in files:
            if entry.name not in shards and entry.name != names_file:
                survey.add_unread(entry.name, "it is not a Parquet file")
        _check_size(where, sum(entry.size for entry in files if entry.name in shards))
        self._part_of = _parts_of(where, shards, is_single=isinstance(tree, SingleFile))
        labels: dict[PartName, list[np.ndarray]] = {}
        self._columns: dict[str, _Columns] = {}
        names: tuple[str, ...] = ()
        for entry, content in tree.read(lambda entry: entry.name in self._part_of or entry.name == names_file):
            if entry.name == names_file:
                names = read_names(entry.name, content)
                continue
            with self._opened(entry.name, content) as file:
                columns = self._columns[entry.name] = _find_columns(entry.name, file, self._arrow)
                labels.setdefault(self._part_of[entry.name], []).append(_read_labels(entry.name, file, columns))
        named = {columns.names for columns in self._columns.values()}
        if len(named) > 1:
            raise _bad(where, "its files name different classes")
        (of_schema,) = named
        rows = place_rows(
            where,
            {part: np.concatenate(found) for part, found in labels.items()},
            names=of_schema or names,
            names_file=None if of_schema or not names else names_file,
            needed=needed,
            test_share=test_share,
        )
        self.layout, self._places = rows

    def __len__(self) -> int:
        return len(self._places)

    def items(self) -> Iterator[Item]:
        """Yield the images of all parts."""
        rows = dict.fromkeys(self._part_of.values(), 0)
        for entry, content in self._tree.read(lambda entry: entry.name in self._part_of):
            part = self._part_of[entry.name]
            with self._opened(entry.name, content) as file:
                for image in _read_images(file, self._columns[entry.name]):
                    name = row_name(part, rows[part])
                    rows[part] += 1
                    if place := self._places.get(name):
                        yield Item(name, place, image)

    @contextmanager
    def _opened(self, name: str, content: bytes) -> Iterator[Any]:
        """Open a file. Raises BadDataset, also for what goes wrong inside the block."""
        arrow = self._arrow
        try:
            with arrow.ParquetFile(io.BytesIO(content), pre_buffer=False, page_checksum_verification=True) as file:
                yield file
        except (arrow.ArrowException, OSError, EOFError) as error:
            if isinstance(error, MemoryError):
                raise
            raise _bad(name, str(error).partition("\n")[0]) from error


def is_parquet_file(name: str) -> bool:
    """Whether a file in a folder or archive is a Parquet file, by its name."""
    return name.lower().endswith(".parquet")


class _Arrow(NamedTuple):
    """What is used of pyarrow."""

    ParquetFile: Any
    ArrowException: Any
    types: Any


def _import() -> _Arrow:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadDataset(
            "Parquet files are read by pyarrow, which is not installed here",
            hint="install it with: pip install pyarrow; or store the images as files in class folders",
            field="dataset",
        ) from error
    # Its own allocator reserves address space in large pieces, which the limits of an inspection count.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    return _Arrow(pyarrow.parquet.ParquetFile, pyarrow.ArrowException, pyarrow.types)


def _parts_of(where: str, shards: Sequence[str], *, is_single: bool) -> dict[str, PartName]:
    """Tell the part of each file by its name. Raises BadDataset."""
    if is_single:
        return dict.fromkeys(shards, "train")
    kinds = {name: _kind_of(name) for name in shards}
    unknown = [name for name, kind in kinds.items() if kind is None]
    if unknown and len(unknown) < len(shards):
        raise _bad(where, f"the name of {show(unknown[0])} does not say whether it is for training or testing")
    has_test, has_val = "test" in kinds.values(), "val" in kinds.values()
    roles: Mapping[str | None, PartName] = {
        None: "train",
        "train": "train",
        "test": "test",
        "val": "held_out" if has_test and has_val else "test",
    }
    return {name: roles[kind] for name, kind in kinds.items()}


def _kind_of(name: str) -> str | None:
    path = PurePosixPath(name)
    words = [re.split(r"[^a-z]", path.stem.casefold())[0], path.parent.name.casefold()]
    return next((PART_NAMES[word] for word in words if word in PART_NAMES), None)


def _find_columns(name: str, file: Any, arrow: _Arrow) -> _Columns:
    """Find the columns of images and labels, and the names of the classes. Raises BadDataset."""
    schema = file.schema_arrow
    features = _features(schema.metadata)
    kinds = {column: described.get("_type") for column, described in features.items() if column in schema.names}
    types = {field.name: field.type for field in schema}
    images = [column for column, kind in kinds.items() if kind == "Image"] or [
        column for column, type_ in types.items() if _holds_bytes(type_, arrow) is not None
    ]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"] or [
        column for column, type_ in types.items() if arrow.types.is_integer(type_)
    ]
    image = _choose(name, "images", images, _IMAGE_NAMES, schema.names)
    label = _choose(name, "labels", labels, _LABEL_NAMES, schema.names)
    is_struct = _holds_bytes(types[image], arrow)
    if is_struct is None:
        raise _bad(name, f"the column {show(image)} is {types[image]}, not the bytes of image files")
    if not arrow.types.is_integer(types[label]):
        raise _bad(name, f"the column {show(label)} is {types[label]}, not numbers of classes")
    names = features.get(label, {}).get("names") or ()
    return _Columns(image, is_struct, label, check_names(name, list(names)) if names else ())


def _holds_bytes(type_: Any, arrow: _Arrow) -> bool | None:
    """Whether a column has the bytes of files in a struct (True) or alone (False); None where it has none."""
    types = arrow.types
    if types.is_struct(type_):
        inner = {type_.field(number).name: type_.field(number).type for number in range(type_.num_fields)}
        return True if "bytes" in inner and _is_bytes(inner["bytes"], types) else None
    return False if _is_bytes(type_, types) else None


def _is_bytes(type_: Any, types: Any) -> bool:
    return bool(types.is_binary(type_) or types.is_large_binary(type_))


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Read what the datasets library says of the columns; nothing where it says nothing that can be read."""
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {column: described for column, described in found.items() if isinstance(described, dict)}


def _choose(name: str, what: str, found: Sequence[str], usual: Sequence[str], columns: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    named = [column for column in found if column.casefold() in usual]
    if len(named) == 1:
        return named[0]
    if not found:
        raise _bad(name, f"it has no column of {what}, only {', '.join(map(show, columns)) or 'none'}")
    raise _bad(name, f"each of the columns {' and '.join(map(show, found))} could be the {what}: keep one of them")


def _read_labels(name: str, file: Any, columns: _Columns) -> np.ndarray:
    found = []
    rows = 0
    for batch in file.iter_batches(batch_size=2**16, columns=[columns.label], use_threads=False):
        column = batch.column(0)
        if column.null_count:
            row = rows + column.is_null().to_pylist().index(True)
            raise _bad(name, f"row {row} has no label")
        found.append(column.to_numpy(zero_copy_only=False).astype(np.int64))
        rows += len(column)
    numbers = np.concatenate(found) if found else np.empty(0, np.int64)
    _check_size(name, sum(_image_bytes(file, columns)))
    return numbers


def _check_size(name: str, size: int) -> None:
    """Refuse what does not fit the memory, before it is read. Raises BadDataset."""
    if not fits_memory(size):
        raise BadDataset(
            f"the images in {show(name)} take {size / 2**30:.3g} GiB, more than this machine's memory can hold",
            hint="store the images as files in class folders: those are streamed, from a folder, a zip or a plain tar",
            field="dataset",
        )


def _image_bytes(file: Any, columns: _Columns) -> Iterator[int]:
    """Yield the unpacked bytes of the images, as the file states them."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] == columns.image:
                yield column.total_uncompressed_size


def _read_images(file: Any, columns: _Columns) -> Iterator[bytes | str]:
    """Yield the bytes of each image file, or why there are none."""
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[columns.image], use_threads=False):
        for value in batch.column(0).to_pylist():
            content = value.get("bytes") if columns.is_struct and value is not None else value
            if isinstance(content, bytes):
                yield content
            elif isinstance(value, dict) and value.get("path"):
                yield f"only the path {show(str(value['path']))} of the image is stored: embed the bytes of the file"
            else:
                yield "the image is missing: its value is null"


def _bad(where: str, reason: str) -> BadDataset:
    return BadDataset(f"cannot read {show(where)}: {reason}", hint=_REMEDY, field="dataset")
