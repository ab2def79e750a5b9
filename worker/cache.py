"""Objects on this machine, by their hash: what several jobs read is fetched once, and what nobody reads makes room."""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from app.storage import ObjectStore
from worker.fetching import whole

log = logging.getLogger(__name__)

# What a process that was killed has left half fetched.
_ABANDONED_SECONDS = 86400


class Cache:
    """A folder of at most so many bytes, shared by all the workers of this machine.

    A file that somebody holds is locked by him and stays, also where the folder is then too large.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    @contextmanager
    def hold(
        self, key: str, sha256: str, size: int, store: ObjectStore, *, beat: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """Have an object as a file as long as the block runs; `beat` is called now and then while it comes.

        Raises StorageUnavailable where it cannot be had, also when it is not what was stored, and OSError where the
        folder cannot be written.
        """
        path = self._folder / sha256
        while (file := _open(path, size)) is None:
            self._fetch(key, sha256, size, store, beat)
        with file:
            yield path

    def _fetch(self, key: str, sha256: str, size: int, store: ObjectStore, beat: Callable[[], None]) -> None:
        self._make_room(size)
        with NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
            try:
                for chunk in whole(key, sha256, store):
                    file.write(chunk)
                    beat()
                file.flush()
                Path(file.name).replace(self._folder / sha256)
            except BaseException:
                with suppress(FileNotFoundError):
                    Path(file.name).unlink()
                raise

    def _make_room(self, size: int) -> None:
        """Remove what was held longest ago and is not held now, until so many more bytes fit."""
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if not path.name.startswith("."):
                    files.append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        total = size + sum(each for _, each, _ in files)
        for _, its_size, path in sorted(files):
            if total <= self._most_bytes:
                return
            if _remove(path):
                total -= its_size
        if total > self._most_bytes:
            log.warning("the cache holds more than it may: all of it is in use, or one file is larger than the cache")


def _open(path: Path, size: int) -> BinaryIO | None:
    """Open and lock a file that is there and whole; None where it is not, or has just been removed."""
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
            _remove(path)
    return None


def _remove(path: Path) -> bool:
    """Remove a file that nobody holds."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
