"""Read untrusted zip archives: dangerous ones are refused, before and while they are read.

Nothing is unpacked to disk: members are read one by one, on request. The central directory is checked before zipfile
parses it, and bytes are counted while they are inflated, since the sizes in the directory may be false.
"""

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from core.schema.errors import BadDataset

_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar"}
_END, _END_64, _LOCATOR, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_SIZE, _END_64_SIZE, _LOCATOR_SIZE, _ENTRY_SIZE, _LOCAL_SIZE = 22, 56, 20, 46, 30
_LONGEST_COMMENT = 65_535
_ENCRYPTED = 0x1 | 0x40
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# A smaller member is not a bomb, whatever its ratio: a file of one repeated letter is compressed a thousand times.
_RATIO_COUNTS_FROM = 2**20
_CHUNK = 2**18
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class Caps:
    """Limits of an archive."""

    members: int = 200_000
    """Files and folders."""
    member_bytes: int = 64 * 2**20
    """Bytes of one file."""
    total_bytes: int = 16 * 2**30
    """Bytes of all files together."""
    ratio: int = 200
    """Inflated bytes per compressed byte."""


class Member(NamedTuple):
    """A file or folder in an archive."""

    name: str
    """Its path, normalised: no empty parts, Unicode NFC."""
    size: int
    """Bytes, according to the directory."""
    is_folder: bool
    entry: zipfile.ZipInfo


class Archive:
    """A zip archive whose directory has passed all checks; a context manager.

    Raises BadDataset for names that are absolute or lead outside, links, devices, names that occur twice or differ only
    in case, encryption, archives inside, overlapping entries, and more or larger files than the caps allow.
    """

    def __init__(self, path: Path, caps: Caps) -> None:
        self._path, self._caps, self._read = path, caps, 0
        _look_through_directory(path, caps)
        try:
            self._zip = zipfile.ZipFile(path)
            self.members = tuple(_check(self._zip, caps))
        except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
            raise _damaged(path.name, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, member: Member) -> bytes:
        """Inflate one file. Raises BadDataset when it, or all files read so far, exceed the caps."""
        content = bytearray()
        most = self._caps.ratio * max(member.entry.compress_size, _RATIO_COUNTS_FROM // self._caps.ratio)
        try:
            with self._zip.open(member.entry) as file:
                while chunk := file.read(_CHUNK):
                    content += chunk
                    self._read += len(chunk)
                    if len(content) > self._caps.member_bytes:
                        raise _too_large(member.name, self._caps)
                    if len(content) > most:
                        raise _bomb(member.name, self._caps)
                    if self._read > self._caps.total_bytes:
                        raise _too_much(self._caps)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise _damaged(member.name, error) from error
        return bytes(content)


def _look_through_directory(path: Path, caps: Caps) -> None:
    """Count the entries before zipfile creates an object for each, and check that the directory ends as stated."""
    with path.open("rb") as file:
        start, stop = _find_directory(file, path.name)
        file.seek(start)
        count = 0
        while start < stop:
            entry = file.read(_ENTRY_SIZE)
            if len(entry) < _ENTRY_SIZE or not entry.startswith(_ENTRY):
                raise _damaged(path.name, "its directory is damaged")
            more = sum(struct.unpack_from("<3H", entry, 28))
            file.seek(more, os.SEEK_CUR)
            start += _ENTRY_SIZE + more
            count += 1
            if count > caps.members:
                raise BadDataset(
                    f"{path.name} holds more than {caps.members:,} files",
                    hint="remove files that are not images, or use fewer images",
                    field="dataset",
                )
        if start != stop:
            raise _damaged(path.name, "its directory is damaged")


def ends_as_archive(content: bytes) -> bool:
    """Return whether a file of any kind is also a zip archive: programs would disagree on what it is."""
    at = content.rfind(_END, max(len(content) - _END_SIZE - _LONGEST_COMMENT, 0))
    if at < 0 or at + _END_SIZE > len(content):
        return False
    return at + _END_SIZE + int.from_bytes(content[at + _END_SIZE - 2 : at + _END_SIZE], "little") == len(content)


def _find_directory(file: BinaryIO, name: str) -> tuple[int, int]:
    """Return the start and end of the directory. Raises BadDataset for bytes before or after the archive."""
    length = file.seek(0, os.SEEK_END)
    begin = max(length - _END_SIZE - _LONGEST_COMMENT - _LOCATOR_SIZE - _END_64_SIZE, 0)
    file.seek(begin)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or at + _END_SIZE > len(tail):
        raise _damaged(name, "it is not a zip archive, or its end is missing")
    disk, first_disk, _, _, size, offset, comment = struct.unpack_from("<4H2IH", tail, at + 4)
    if at + _END_SIZE + comment != len(tail) or disk or first_disk:
        raise _damaged(name, "bytes follow its end, or it is one part of a split archive")
    stop = at
    if tail[max(at - _LOCATOR_SIZE, 0) : at].startswith(_LOCATOR):
        stop = at - _LOCATOR_SIZE - _END_64_SIZE
        if stop < 0 or not tail[stop:].startswith(_END_64):
            raise _damaged(name, "its directory is damaged")
        size, offset = struct.unpack_from("<2Q", tail, stop + 40)
    if offset + size != begin + stop:
        raise _damaged(name, "its directory is not at the stated position")
    return offset, begin + stop


def _check(archive: zipfile.ZipFile, caps: Caps) -> Iterator[Member]:
    entries = archive.infolist()
    _refuse_overlap(entries, archive.start_dir)
    seen: dict[str, str] = {}
    total = 0
    for entry in entries:
        name = check_name(entry.orig_filename)
        is_folder = entry.orig_filename.endswith(("/", "\\"))
        if name == ".":
            continue
        before = seen.setdefault(name.casefold(), name)
        if before is not name:
            how = "occurs twice" if before == name else f"differs only in case from {show(before)}"
            raise _refused(f"{show(name)} {how}", "give every file a different name")
        mode = stat.S_IFMT(entry.external_attr >> 16)
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(f"{show(name)} is a link or a device", "put the files themselves into the archive")
        if entry.flag_bits & _ENCRYPTED:
            raise _refused(f"{show(name)} is encrypted", "create the archive without a password")
        if entry.compress_type not in _METHODS:
            raise _refused(f"{show(name)} has an unsupported compression method", "create the archive with deflate")
        if PurePosixPath(name).suffix.lower() in _ARCHIVES and not is_folder:
            raise _refused(f"{show(name)} is an archive inside the archive", "put the images themselves into it")
        total += entry.file_size
        if entry.file_size > caps.member_bytes:
            raise _too_large(name, caps)
        if entry.file_size > max(caps.ratio * entry.compress_size, _RATIO_COUNTS_FROM):
            raise _bomb(name, caps)
        if total > caps.total_bytes:
            raise _too_much(caps)
        yield Member(name, entry.file_size, is_folder, entry)


def _refuse_overlap(entries: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse entries that share bytes: a small archive could contain the same bomb a million times."""
    free = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < free:
            raise _refused(f"{show(entry.filename)} overlaps another file", "create the archive again")
        free = entry.header_offset + _LOCAL_SIZE + entry.compress_size
    if free > end:
        raise _refused("a file overlaps the directory", "create the archive again")


def check_name(raw: str) -> str:
    """Normalise the name of a file in an archive: `/` between folders, no empty parts, Unicode NFC.

    Some programs for Windows write a backslash between folders. Raises BadDataset for names that lead outside the
    archive, or differ between operating systems.
    """
    name = unicodedata.normalize("NFC", raw.replace("\\", "/"))
    path = PurePosixPath(name)
    wrong = None
    if ".." in path.parts:
        wrong = "has '..' in it, which can lead out of the archive"
    elif path.is_absolute():
        wrong = "is absolute: it begins at the root of a disk"
    elif re.match(r"[A-Za-z]:", name):
        wrong = "begins with the letter of a drive"
    elif len(raw) > _LONGEST_NAME:
        wrong = f"has more than {_LONGEST_NAME} characters"
    elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in raw):
        wrong = "has control characters, or bytes that are not text"
    if wrong:
        raise _refused(f"the name {show(raw)} {wrong}", "use names such as train/cat/1.png")
    return path.as_posix()


def show(name: str, to: int = 120) -> str:
    """Return an untrusted name without control characters and at most `to` characters long, safe to print."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in name)
    return shown if len(shown) <= to else f"{shown[: to // 2]}…{shown[-to // 2 :]}"


def _refused(message: str, hint: str) -> BadDataset:
    return BadDataset(message, hint=hint, field="dataset")


def _too_large(name: str, caps: Caps) -> BadDataset:
    most = f"{caps.member_bytes / 2**20:.0f} MiB"
    return _refused(f"{show(name)} is larger than {most}", f"a file may have at most {most}")


def _bomb(name: str, caps: Caps) -> BadDataset:
    return _refused(
        f"{show(name)} unpacks to more than {caps.ratio} times its size",
        "images do not compress this well: remove it",
    )


def _too_much(caps: Caps) -> BadDataset:
    return _refused(
        f"its files have more than {caps.total_bytes / 2**30:.3g} GiB in total", "use fewer or smaller images"
    )


def _damaged(name: str, error: object) -> BadDataset:
    return _refused(f"cannot read {show(name)}: {error}", "give a folder, or a complete zip or tar archive")
