"""The files of a folder, or of a zip or tar archive, by their paths; archives are read and never unpacked.

Paths are relative, with `/`, and with accents composed (Unicode NFC), so that a data set has the same names wherever it
was packed. Nothing is written, so no member of an archive can be written outside a folder.
"""

import lzma
import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from core.data.safe_zip import Archive, Caps, check_name, show
from core.schema.errors import BadDataset

_STARTS = {b"PAR1": ".parquet", b"\x93NUMPY": ".npy"}
_LARGEST_DESCRIPTION = 2**20
_DESCRIBING = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}
"""Types of headers that describe the header after them."""
_DEEPEST = 64
"""Folders within each other, in a folder of the operator's."""


class Entry(NamedTuple):
    """A file or folder."""

    name: str
    """Its path."""
    size: int
    """Bytes; 0 for a folder."""
    is_folder: bool = False
    reason: str | None = None
    """Why it cannot be read; None for files and folders that can."""


class FileTree(Protocol):
    """The files of a folder or archive."""

    def entries(self) -> Iterator[Entry]:
        """List all files and folders, in an order that is the same each time. Raises BadDataset."""

    def read(self, is_wanted: Callable[[Entry], bool]) -> Iterator[tuple[Entry, bytes]]:
        """Yield the files for which `is_wanted` is true, with their content, in the same order. Raises BadDataset."""


def open_tree(path: Path, caps: Caps, *, untrusted: bool = False) -> FileTree:
    """Tell what lies at a path. caps: limits of an archive. untrusted: whether links and devices in a tar archive are
    refused, and not only left out. Raises BadDataset where nothing does."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise BadDataset(f"{path} does not exist", hint="check the path of the data set", field="dataset")
    if suffix := _suffix_of_one(path):
        return SingleFile(path, suffix)
    if zipfile.is_zipfile(path):
        return _Zip(path, caps)
    return Tar(path, caps if untrusted else None)


def _suffix_of_one(path: Path) -> str | None:
    """Tell by its first bytes whether a file is one that holds several images; None for an archive of files."""
    with _reading(path), path.open("rb") as file:
        start = file.read(8)
    return next((suffix for begin, suffix in _STARTS.items() if start.startswith(begin)), None)


class Folder:
    """A folder. Links are followed, those to folders too, as torchvision's ImageFolder does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry]:
        """List all files and folders. Raises BadDataset."""
        return (entry for entry, _ in self.paths())

    def read(self, is_wanted: Callable[[Entry], bool]) -> Iterator[tuple[Entry, bytes]]:
        """Yield the wanted files with their content. Raises BadDataset."""
        for entry, path in self.paths():
            if not entry.is_folder and entry.reason is None and is_wanted(entry):
                with _reading(self._path):
                    content = (self._path / path).read_bytes()
                yield entry, content

    def paths(self) -> Iterator[tuple[Entry, str]]:
        """List all files and folders, each with its path below the folder as the file system has it.

        Raises BadDataset.
        """
        # Only names with accents can be written in several ways.
        seen: set[str] = set()
        with _reading(self._path):
            for entry, path in _walk(os.fspath(self._path), "", "", ()):
                if not entry.is_folder and not entry.name.isascii():
                    _refuse_twice(entry.name, seen)
                yield entry, path


class SingleFile:
    """A file that is a data set by itself, as a tree of one file."""

    def __init__(self, path: Path, suffix: str) -> None:
        """Suffix: that of its kind, whatever its name is."""
        self._path = path
        self._name = path.name if path.name.lower().endswith(suffix) else f"{path.name}{suffix}"

    def entries(self) -> Iterator[Entry]:
        """List the file. Raises BadDataset."""
        with _reading(self._path):
            yield Entry(self._name, self._path.stat().st_size)

    def read(self, is_wanted: Callable[[Entry], bool]) -> Iterator[tuple[Entry, bytes]]:
        """Yield the file with its content, if it is wanted. Raises BadDataset."""
        for entry in self.entries():
            if is_wanted(entry):
                with _reading(self._path):
                    content = self._path.read_bytes()
                yield entry, content


def _walk(root: str, path: str, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Entry, str]]:
    """List a folder by its path below `root`, and its name, which is that path with composed accents."""
    folder = f"{root}/{path}"
    status = Path(folder).stat()
    here = (status.st_dev, status.st_ino)
    # A link to a folder that it lies in would never end.
    if here in above or len(above) > _DEEPEST:
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        inner = f"{path}/{entry.name}" if path else entry.name
        shown = unicodedata.normalize("NFC", os.fsencode(entry.name).decode("utf-8", "backslashreplace"))
        shown = f"{name}/{shown}" if name else shown
        if entry.is_dir():
            yield Entry(shown, 0, is_folder=True), inner
            yield from _walk(root, inner, shown, (*above, here))
        elif entry.is_file():
            yield Entry(shown, entry.stat().st_size), inner
        else:
            reason = "it is a broken link" if entry.is_symlink() else "it is a device"
            yield Entry(shown, 0, reason=reason), inner


class _Zip:
    """A zip archive, which may be hostile."""

    def __init__(self, path: Path, caps: Caps) -> None:
        self._path, self._caps = path, caps

    def entries(self) -> Iterator[Entry]:
        with Archive(self._path, self._caps) as archive:
            for member in archive.members:
                yield Entry(member.name, 0 if member.is_folder else member.size, member.is_folder)

    def read(self, is_wanted: Callable[[Entry], bool]) -> Iterator[tuple[Entry, bytes]]:
        with Archive(self._path, self._caps) as archive:
            for member in archive.members:
                entry = Entry(member.name, member.size)
                if not member.is_folder and is_wanted(entry):
                    yield entry, archive.read(member)


class Tar:
    """A tar archive, compressed or not.

    caps: limits of one that may be hostile, in which links, devices and absolute names are refused; None for an archive
    of the operator's.
    """

    def __init__(self, path: Path, caps: Caps | None = None) -> None:
        self._path, self._caps = path, caps

    def entries(self) -> Iterator[Entry]:
        """List all files and folders. Raises BadDataset."""
        seen: set[str] = set()
        for entry, _, _ in self._walk():
            if not entry.is_folder:
                _refuse_twice(entry.name, seen)
            yield entry

    def read(self, is_wanted: Callable[[Entry], bool]) -> Iterator[tuple[Entry, bytes]]:
        """Yield the wanted files with their content. Raises BadDataset."""
        for entry, archive, member in self._walk():
            if not entry.is_folder and entry.reason is None and is_wanted(entry):
                with _reading(self._path):
                    file = archive.extractfile(member)
                    content = b"" if file is None else file.read()
                yield entry, content

    def _open(self) -> tarfile.TarFile:
        try:
            return tarfile.open(self._path, "r|*", tarinfo=_Header)
        except tarfile.ReadError as error:
            what = "it is neither a zip nor a tar archive, or its beginning is damaged"
            raise _unreadable(self._path.name, what) from error

    def _walk(self) -> Iterator[tuple[Entry, tarfile.TarFile, tarfile.TarInfo]]:
        total = 0
        with _reading(self._path), self._open() as archive:
            for number, member in enumerate(archive, 1):
                if self._caps:
                    total += member.size
                    self._check(member, number, total, self._caps)
                # A name that begins with / is one below the root, as tar itself unpacks it.
                if (name := check_name(member.name if self._caps else member.name.lstrip("/"))) != ".":
                    yield _entry(name, member), archive, member

    def _check(self, member: tarfile.TarInfo, number: int, total: int, caps: Caps) -> None:
        """Refuse a member of an untrusted archive, from its header. Raises BadDataset."""
        name, message, hint = show(member.name), "", ""
        if number > caps.members:
            message = f"{self._path.name} holds more than {caps.members:,} files"
            hint = "remove files that are not images, or use fewer images"
        elif member.issym() or member.islnk():
            message, hint = f"{name} is a link in the archive", "put the files themselves into the archive: tar -h"
        elif not (member.isreg() or member.isdir()):
            message, hint = f"{name} is a device or another special file", "remove it from the archive"
        elif member.issparse():
            message, hint = f"{name} is a sparse file in the archive", "create the archive without --sparse"
        elif member.size > caps.member_bytes:
            message = f"{name} is larger than {caps.member_bytes / 2**20:.0f} MiB"
            hint = f"a file may have at most {caps.member_bytes / 2**20:.0f} MiB"
        elif total > caps.total_bytes:
            message = f"its files have more than {caps.total_bytes / 2**30:.3g} GiB in total"
            hint = "use fewer or smaller images"
        if message:
            raise BadDataset(message, hint=hint, field="dataset")


class _Header(tarfile.TarInfo):
    """A header of a tar archive. Those that only describe the next one are read into memory, and therefore limited."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header. Raises tarfile.TarError."""
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # tarfile has no public name for the error of a damaged header, which it takes for the end of the archive.
            if type(error).__name__ != "InvalidHeaderError":
                raise
            raise tarfile.ReadError(f"a header is damaged: {error}") from error
        if found.type in _DESCRIBING and found.size > _LARGEST_DESCRIPTION:
            raise tarfile.ReadError("a header describes a file in more than a MiB")
        return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise BadDataset for what goes wrong inside the block when a folder or tar archive is read."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _unreadable(path.name, str(error)) from error
    except OSError as error:
        raise _unreadable(str(error.filename or path.name), error.strerror or str(error)) from error


def _unreadable(name: str, reason: str) -> BadDataset:
    return BadDataset(
        f"cannot read {show(name)}: {reason}",
        hint="give a folder, or a complete zip or tar archive, that this user may read",
        field="dataset",
    )


def _refuse_twice(name: str, seen: set[str]) -> None:
    if name in seen:
        raise BadDataset(f"{show(name)} occurs twice", hint="give every file a different name", field="dataset")
    seen.add(name)


def _entry(name: str, member: tarfile.TarInfo) -> Entry:
    if member.isdir():
        return Entry(name, 0, is_folder=True)
    if member.isreg():
        return Entry(name, member.size)
    return Entry(
        name, 0, reason="it is a link in the archive" if member.issym() or member.islnk() else "it is a device"
    )
