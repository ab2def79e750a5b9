"""Verified copies of stored objects on this machine, which jobs share; old copies make room for new ones."""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from app.storage import ObjectStore, StorageUnavailable

log = logging.getLogger(__name__)

# A partial copy of this age was left by a process that was killed.
_ABANDONED_SECONDS = 86400
_CHUNK_BYTES = 1 << 20
_MOST_DAMAGED = 3
"""Damaged copies of one object after which the disk is to blame."""


def read_verified(key: str, sha256: str, store: ObjectStore) -> Iterator[bytes]:
    """Read an object in chunks. Raises StorageUnavailable, after the last chunk when the hash is a different one."""
    digest = hashlib.sha256()
    for chunk in store.read(key):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise StorageUnavailable(f"{key}: its content differs from what was stored")


class Cache:
    """A folder of copies, named by hash, of `max_bytes` in all, which all workers of this machine share.

    A copy in use is locked and is never removed, even where the folder is then too large.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def hold(
        self, key: str, sha256: str, size: int, store: ObjectStore, *, check: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """Yield the path of an object's copy, which stays while the block runs and has the object's hash. `check` is
        called after each chunk that arrives or is verified, and may raise to end that.

        Raises StorageUnavailable when the object cannot be read or has a different hash, and OSError when the folder
        cannot be written, or a file read from it differs from what was written.
        """
        path = self._folder / sha256
        with self._open_verified(key, sha256, size, store, check):
            yield path

    def _open_verified(
        self, key: str, sha256: str, size: int, store: ObjectStore, check: Callable[[], None]
    ) -> BinaryIO:
        """Open and lock a copy with this hash, fetched where there is none."""
        path, damaged = self._folder / sha256, 0
        while True:
            while (file := _open(path, size)) is None:
                self._fetch(key, sha256, size, store, check)
            try:
                is_right = _hash(file, check) == sha256
            except BaseException:
                file.close()
                raise
            if is_right:
                return file
            file.close()
            damaged += 1
            log.warning("the copy %s in the cache is damaged and is fetched again", path)
            if damaged == _MOST_DAMAGED:
                raise OSError(EIO, "the file read from disk differs from what was written", str(path))
            # Into the place of the damaged copy, which another job may hold.
            self._fetch(key, sha256, size, store, check)

    def _fetch(self, key: str, sha256: str, size: int, store: ObjectStore, check: Callable[[], None]) -> None:
        self._make_room(size)
        with NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
            try:
                for chunk in read_verified(key, sha256, store):
                    file.write(chunk)
                    check()
                file.flush()
                Path(file.name).replace(self._folder / sha256)
            except BaseException:
                with suppress(FileNotFoundError):
                    Path(file.name).unlink()
                raise

    def _make_room(self, size: int) -> None:
        """Remove the least recently used copies that are not in use until `size` more bytes fit."""
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if not path.name.startswith("."):
                    files.append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        total = size + sum(file_size for _, file_size, _ in files)
        for _, file_size, path in sorted(files):
            if total <= self._max_bytes:
                return
            if _remove_unused(path):
                total -= file_size
        if total > self._max_bytes:
            log.warning("the cache exceeds its limit: all of it is in use, or one file is larger than the limit")


def _hash(file: BinaryIO, check: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        check()
    return digest.hexdigest()


def _open(path: Path, size: int) -> BinaryIO | None:
    """Open and lock a complete copy; None when there is none, or when it has just been removed."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    status = os.fstat(file.fileno())
    if status.st_nlink and status.st_size == size:
        with suppress(OSError):
            os.utime(file.fileno())
        return file
    file.close()
    with suppress(FileNotFoundError):
        if status.st_nlink:
            _remove_unused(path)
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a copy unless it is in use; return whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
