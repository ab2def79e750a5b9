"""Read what `torch.save` writes, old and new files, as data: nothing of the file is imported or called.

A tensor is a `StoredTensor`, which reads its numbers when it is asked for them, so that the state of an optimiser
beside the weights takes no memory. Numbers are read from entries that are stored uncompressed, as torch writes them: no
tensor is larger than the bytes of the file, but for views with repeated elements, which are limited.
"""

import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from core.inert_pickle import Builder, Global, Inert, Unpickler, UnreadablePickle

MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The number with which files of torch before 1.6 begin, as pickle writes it."""
_MAGIC_NUMBER = int.from_bytes(MAGIC[2:], "little", signed=True)
_MAX_EXPANDED = 2**24
"""The elements of a tensor that repeats the numbers of its storage."""
_MAX_DIMENSIONS = 64
_MAX_SIZE = 2**48

_ELEMENTS: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}
_TYPES: Mapping[str, torch.dtype] = {
    str(found): found for found in vars(torch).values() if isinstance(found, torch.dtype)
}


class DamagedFile(Exception):
    """The file ends before its tensors do, or contradicts itself."""


class RepackedFile(Exception):
    """The entries of the archive are compressed, which torch never does."""


@dataclass(eq=False)
class Storage:
    """Numbers of one type in a file, which several tensors may share."""

    dtype: torch.dtype
    count: int
    """Number of elements."""
    read: Callable[[int], bytearray]
    """Reads a number of bytes from the start. Raises DamagedFile."""
    _numbers: Tensor | None = field(default=None, repr=False)

    def numbers(self) -> Tensor:
        """Read the elements, once. Raises DamagedFile."""
        if self._numbers is None:
            content = self.read(self.count * self.dtype.itemsize)
            self._numbers = torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)
        return self._numbers


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file, not yet read."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """Read its numbers. Raises DamagedFile."""
        numbers = self.storage.numbers()
        if numbers.dtype != self.dtype:
            content = numbers.view(torch.uint8)
            numbers = content[: len(content) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        return numbers.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class UnusableTensor:
    """A tensor of a kind that no network loads."""

    kind: str
    """What is unusual, such as "is quantised"."""


AnyTensor = Tensor | StoredTensor | UnusableTensor


def is_tensor(value: object) -> TypeGuard[AnyTensor]:
    """Return whether a value in a file is a tensor of any kind."""
    return isinstance(value, Tensor | StoredTensor | UnusableTensor)


def read_archive(path: Path) -> Any:
    """Read a file of torch 1.6 or later, a zip archive. Raises UnreadablePickle, HarmfulPickle, DamagedFile, ..."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            data = next((name for name in entries if name.rpartition("/")[2] == "data.pkl"), None)
            if data is None:
                raise DamagedFile("the archive has no data.pkl")
            folder = data.removesuffix("data.pkl")
            # The sums over the entries are not checked: torch can be told not to write them.
            content = _stored(path, entries[data], entries[data].file_size)
            order = entries.get(f"{folder}byteorder")
            swapped = order is not None and bytes(_stored(path, order, 3)) != sys.byteorder.encode()[:3]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise DamagedFile(str(error)) from error

    storages: dict[str, Storage] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        entry = entries.get(f"{folder}data/{key}")
        if entry is None:
            raise DamagedFile(f"the archive has no data/{key}")
        read = partial(_stored, path, entry)
        if swapped:
            read = partial(_swapped, read, dtype.itemsize)
        return storages.setdefault(key, Storage(dtype, count, read))

    def persistent(reference: Any) -> Any:
        dtype, key, count, _ = _storage_reference(reference)
        return storage(dtype, key, count)

    return Unpickler(io.BytesIO(content), len(content), builders=_BUILDERS, persistent=persistent).load()


def _stored(path: Path, entry: zipfile.ZipInfo, count: int) -> bytearray:
    """Read the first bytes of an uncompressed entry of an archive. Raises DamagedFile, RepackedFile."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise RepackedFile
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise DamagedFile(f"{entry.filename} is not where the archive says")
        name, extra = struct.unpack("<HH", header[26:])
        return _take(file, entry.header_offset + 30 + name + extra, min(count, entry.file_size), count)


def _take(file: BinaryIO, start: int, count: int, wanted: int) -> bytearray:
    """Read the bytes from `start` on. Raises DamagedFile where there are fewer than `wanted`."""
    left = file.seek(0, os.SEEK_END) - start
    if wanted > count or count > left:
        raise DamagedFile("the file ends within a tensor")
    file.seek(start)
    content = bytearray(count)
    view, done = memoryview(content), 0
    while done < count:
        read = file.readinto(view[done:])  # type: ignore[attr-defined]  # every binary file has it
        if not read:
            raise DamagedFile("the file ends within a tensor")
        done += read
    return content


def _swapped(read: Callable[[int], bytearray], width: int, count: int) -> bytearray:
    """Read numbers of the other byte order."""
    content = read(count)
    turned = bytearray(len(content))
    for byte in range(width):
        turned[byte::width] = content[width - 1 - byte :: width]
    return turned


def read_stream(path: Path) -> Any:
    """Read a file of torch before 1.6, or any other pickle. Raises UnreadablePickle, HarmfulPickle, DamagedFile."""
    with path.open("rb") as file:
        return _read_stream(file, path.stat().st_size, path.open, nested=False)


def _read_stream(file: BinaryIO, size: int, reopen: Callable[..., Any], *, nested: bool) -> Any:
    """Read four pickles and the storages that follow them; a file that begins otherwise is one pickle.

    nested: whether the file lies within a pickle, where each storage is such a file.
    """
    storages: dict[str, Storage] = {}
    positions: dict[str, int] = {}

    def persistent(reference: Any) -> Any:
        if isinstance(reference, tuple) and reference[:1] == ("module",):
            return reference[1] if len(reference) > 1 else None
        dtype, key, count, view = _storage_reference(reference)
        root = storages.setdefault(key, Storage(dtype, count, partial(_of_stream, reopen, positions, key)))
        if view is None:
            return root
        _, start, length = view
        if not _are_sizes((start, length)) or start + length > root.count:
            raise UnreadablePickle("a view leaves its storage")
        return Storage(dtype, length, partial(_of_view, root, start))

    builders = _BUILDERS if nested else {**_BUILDERS, "torch.storage._load_from_bytes": _of_bytes}
    first = Unpickler(file, size, builders=builders).load()
    if first != _MAGIC_NUMBER or type(first) is not int:
        return first
    unpickler = Unpickler(file, size, builders=builders, persistent=persistent)
    unpickler.load()  # version
    unpickler.load()  # the machine's sizes of integers
    content = unpickler.load()
    keys = unpickler.load()
    if not isinstance(keys, list) or any(key not in storages for key in map(str, keys)):
        raise DamagedFile("the list of storages does not fit the tensors")
    place = file.tell()
    for key in map(str, keys):
        positions[key] = place + 8
        place += 8 + storages[key].count * storages[key].dtype.itemsize
    if place > size:
        raise DamagedFile("the file ends within a tensor")
    return content


def _of_stream(reopen: Callable[..., Any], positions: Mapping[str, int], key: str, count: int) -> bytearray:
    if key not in positions:
        raise DamagedFile("a storage is missing")
    with reopen("rb") as file:
        return _take(file, positions[key], count, count)


def _of_view(root: Storage, start: int, count: int) -> bytearray:
    first = start * root.dtype.itemsize
    return root.read(root.count * root.dtype.itemsize)[first : first + count]


def _of_bytes(arguments: tuple[Any, ...]) -> Any:
    """Read a storage that a pickle contains as a file of its own."""
    (content,) = arguments
    if isinstance(content, Inert) and content.name == "_codecs.encode":
        # Bytes as protocol 2 writes them: a text of the first 256 characters.
        content = content.arguments[0].encode("latin-1")
    if not isinstance(content, bytes):
        raise UnreadablePickle("a storage is not bytes")
    return _read_stream(io.BytesIO(content), len(content), lambda _: io.BytesIO(content), nested=True)


def _storage_reference(reference: Any) -> tuple[torch.dtype, str, int, Any]:
    """Take apart the reference to a storage: type, key, elements, and what part of it is meant in old files."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise UnreadablePickle("a reference is not one to a storage")
    kind, key, _, count = reference[1:5]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    if name not in _ELEMENTS or not _are_sizes((count,)):
        raise UnreadablePickle("a storage is of no known type or size")
    return _ELEMENTS[name], str(key), count, reference[5] if len(reference) == 6 else None


def _are_sizes(numbers: Any) -> TypeGuard[tuple[int, ...]]:
    return isinstance(numbers, tuple) and all(type(number) is int and 0 <= number < _MAX_SIZE for number in numbers)


def _tensor(storage: Any, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any) -> AnyTensor:
    size, stride = _as_size(size), _as_size(stride)
    if not isinstance(storage, Storage) or not _are_sizes((offset, *size, *stride)):
        raise UnreadablePickle("a tensor has no storage or size")
    dtype = dtype or storage.dtype
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS or prod(max(side, 1) for side in size) >= _MAX_SIZE:
        raise UnreadablePickle("the sizes of a tensor contradict each other")
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if 0 not in size and last >= count:
        raise UnreadablePickle("a tensor leaves its storage")
    if prod(size) > max(count, _MAX_EXPANDED):
        return UnusableTensor("repeats few numbers many times")
    if dtype.is_complex or not (dtype.is_floating_point or dtype in _INTEGERS):
        return UnusableTensor("is quantised" if str(dtype).startswith("torch.q") else f"is of type {str(dtype)[6:]}")
    return StoredTensor(storage, dtype, 0 if 0 in size else offset, size, stride)


_INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64} | {
    *(torch.uint16, torch.uint32, torch.uint64)
}


def _as_size(value: Any) -> tuple[Any, ...]:
    """Take a size, which is a tuple or torch.Size of one."""
    if isinstance(value, Inert) and value.name == "torch.Size" and value.arguments:
        value = value.arguments[0]
    return tuple(value) if isinstance(value, tuple | list) else (None,)


def _of_type(arguments: tuple[Any, ...]) -> Any:
    """Read a tensor of a subclass, or one with attributes: the function that makes it, class, arguments, attributes."""
    made, _, inner, *_ = arguments
    builder = _BUILDERS.get(made.name) if isinstance(made, Global) else None
    return builder(inner) if builder and isinstance(inner, tuple) else UnusableTensor("is of a class of its own")


def _first(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments and is_tensor(arguments[0]) else Inert("torch.Tensor", arguments)


def _unusable(kind: str) -> Builder:
    return lambda _: UnusableTensor(kind)


_SPARSE = "is sparse or nested, not dense"
_BUILDERS: Mapping[str, Builder] = {
    "torch._utils._rebuild_tensor": lambda given: _tensor(given[0], None, *given[1:4]),
    "torch._utils._rebuild_tensor_v2": lambda given: _tensor(given[0], None, *given[1:4]),
    "torch._utils._rebuild_tensor_v3": lambda given: _tensor(given[0], _TYPES[given[6].name], *given[1:4]),
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_meta_tensor_no_storage": _unusable("has only a shape, no values"),
    "torch._utils._rebuild_qtensor": _unusable("is quantised"),
    "torch._utils._rebuild_sparse_tensor": _unusable(_SPARSE),
    "torch._utils._rebuild_sparse_csr_tensor": _unusable(_SPARSE),
    "torch._utils._rebuild_nested_tensor": _unusable(_SPARSE),
    "torch._utils._rebuild_device_tensor_from_numpy": _unusable("is stored as an array of numpy"),
    "torch._utils._rebuild_wrapper_subclass": _unusable("is of a class of its own"),
}
"""The functions of torch's with which a pickle makes tensors, each as one that makes a record of the tensor."""
