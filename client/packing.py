"""Pack a folder into a zip archive, to upload it: the same files give the same bytes, so that an upload can resume."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from client.errors import CannotRead

_PACKED_ALREADY = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".parquet", ".npz", ".gz"}
"""Suffixes of files that deflating would not make smaller."""
_OLDEST = (1980, 1, 1, 0, 0, 0)
"""The time that every file gets."""
_FILE, _DEEPEST = 0o100644 << 16, 64


def pack(folder: Path, target: Path) -> int:
    """Write the files of a folder into a zip archive, hidden ones left out and links followed; return their number.

    Raises CannotRead for a folder without files and for files that cannot be read.
    """
    count = 0
    try:
        with zipfile.ZipFile(target, "w") as archive:
            for path, name in _files(folder, "", ()):
                member = zipfile.ZipInfo(name, _OLDEST)
                member.external_attr = _FILE
                packed = path.suffix.lower() in _PACKED_ALREADY
                member.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                member.file_size = path.stat().st_size
                with path.open("rb") as source, archive.open(member, "w") as packed_file:
                    while chunk := source.read(2**20):
                        packed_file.write(chunk)
                count += 1
    except OSError as error:
        raise CannotRead(f"cannot pack {error.filename or folder}: {error.strerror or error}") from error
    if not count:
        raise CannotRead(f"{folder} holds no files: give a folder of images, or a file such as a zip archive")
    return count


def _files(folder: Path, inside: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, str]]:
    """List the files below a folder, each with its name in the archive, in an order that is the same each time."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    # A link to a folder that it lies in would never end.
    if here in above or len(above) > _DEEPEST:
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir():
            yield from _files(Path(entry.path), name, (*above, here))
        elif entry.is_file():
            yield Path(entry.path), name
