"""Where checkpoints and reports lie: create-only objects under keys such as jobs/<id>/attempts/<epoch>/report.json."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_CHUNK = 1024 * 1024


class StorageUnavailable(Exception):
    """The object store cannot be read or written."""


class StorageFull(StorageUnavailable):
    """The object store has no room left."""


class ObjectStore(Protocol):
    """Files that are written once and never changed. Every method raises StorageUnavailable."""

    def put(self, key: str, source: Path) -> None:
        """Store a file, whole or not at all. Raises StorageFull, and FileExistsError where the key is taken."""

    def size(self, key: str) -> int:
        """Say how many bytes an object has."""

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Read the bytes from `start` to before `stop`, in chunks."""

    def delete(self, prefix: str) -> None:
        """Delete the objects under a key."""


class LocalStore:
    """Objects as files in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, source: Path) -> None:
        """Store a file, whole or not at all. Raises StorageFull, and FileExistsError where the key is taken."""
        path = self._path(key)
        with _explained(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=".") as temporary, source.open("rb") as content:
                shutil.copyfileobj(content, temporary, _CHUNK)
                temporary.flush()
                os.fsync(temporary.fileno())
                # A link, unlike a rename, never takes the place of a file that is there.
                path.hardlink_to(temporary.name)
            _sync(path.parent)

    def size(self, key: str) -> int:
        """Say how many bytes an object has."""
        with _explained(key):
            return self._path(key).stat().st_size

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Read the bytes from `start` to before `stop`, in chunks."""
        with _explained(key), self._path(key).open("rb") as file:
            left = self.size(key) - start if stop is None else stop - start
            file.seek(start)
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def delete(self, prefix: str) -> None:
        """Delete the objects under a key."""
        path = self._path(prefix)
        with _explained(prefix):
            if path.is_dir():
                shutil.rmtree(path)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not an object key: {key!r}")
        return self.folder / key


@contextmanager
def _explained(key: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageFull if full else StorageUnavailable)(f"{key}: {error.strerror}") from error


def _sync(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
