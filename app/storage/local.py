"""Objects as files in a folder of this machine."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from app.storage.contract import CHUNK, NotStored, SignedRequest, StorageFull, StorageUnavailable, checked

_GATHERINGS = ".gatherings"
"""No key begins with a dot."""
_KINDS = {errno.ENOSPC: StorageFull, errno.EDQUOT: StorageFull, errno.ENOENT: NotStored}


class LocalStore:
    """Objects as files in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, source: Path) -> None:
        """Store a file, whole or not at all. Raises StorageFull, and FileExistsError where the key is taken."""
        path = self._path(key)
        with _explained(key):
            _create(path, [source])

    def size(self, key: str) -> int:
        """Say how many bytes an object has."""
        with _explained(key):
            return self._path(key).stat().st_size

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Read the bytes from `start` to before `stop`, in chunks."""
        with _explained(key), self._path(key).open("rb") as file:
            left = self.size(key) - start if stop is None else stop - start
            file.seek(start)
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Go through the keys under a key, or all of them, in their order."""
        with _explained(prefix):
            folder = self._path(prefix) if prefix else self.folder
            files = [path for path in folder.rglob("[!.]*") if path.is_file()]
        keys = sorted(path.relative_to(self.folder).as_posix() for path in files)
        yield from (key for key in keys if not key.startswith("."))

    def copy(self, key: str, target: str) -> None:
        """Store the same content under a second key, which nothing else is stored under."""
        path = self._path(target)
        with _explained(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.exists() and path.samefile(self._path(key))):
                path.hardlink_to(self._path(key))
            _sync(path.parent)

    def delete(self, key: str) -> None:
        """Delete the object of this key, and all that are under it. What is not there is no error."""
        path = self._path(key)
        with _explained(key):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def begin(self, key: str) -> str:
        """Begin an object that comes in parts; give the name under which they are gathered."""
        gathering = secrets.token_hex(16)
        with _explained(checked(key)):
            self._gathering(gathering).mkdir(parents=True)
        return gathering

    def put_part(self, key: str, gathering: str, number: int, source: Path) -> None:
        """Store a part, the first of which has number 1; it takes the place of an earlier one. Raises StorageFull."""
        folder = self._gathering(gathering)
        temporary = folder / f".{secrets.token_hex(8)}"
        with _explained(checked(key)):
            try:
                shutil.copyfile(source, temporary)
                temporary.replace(folder / f"{number:05}")
            finally:
                temporary.unlink(missing_ok=True)

    def parts(self, key: str, gathering: str) -> Mapping[int, int]:
        """Say which parts are there, and how many bytes each has; none where there is no such gathering."""
        with _explained(checked(key)):
            return {int(path.name): path.stat().st_size for path in self._parts(gathering)}

    def assemble(self, key: str, gathering: str) -> None:
        """Make the object out of its parts, in their order. Raises StorageFull, NotStored where there are none, and
        FileExistsError where the key is taken by anything but this gathering."""
        path, whole = self._path(key), self._gathering(gathering) / "whole"
        with _explained(key):
            parts = self._parts(gathering)
            if not parts:
                path.stat()
                return
            if not (path.exists() and whole.exists() and path.samefile(whole)):
                whole.unlink(missing_ok=True)
                _create(whole, parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(whole)
                _sync(path.parent)
        self.abandon(key, gathering)

    def abandon(self, key: str, gathering: str) -> None:
        """Drop a gathering and its parts. One that is not there is no error."""
        with _explained(checked(key)):
            shutil.rmtree(self._gathering(gathering), ignore_errors=True)

    def download_request(self, key: str, *, file_name: str) -> SignedRequest | None:
        """None: no one but the API reaches the folder."""

    def upload_request(self, key: str, *, size: int, sha256: str) -> SignedRequest | None:
        """None: no one but the API reaches the folder."""

    def part_request(self, key: str, gathering: str, number: int, *, size: int, sha256: str) -> SignedRequest | None:
        """None: no one but the API reaches the folder."""

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, key: str) -> Path:
        return self.folder / checked(key)

    def _gathering(self, gathering: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", gathering):
            raise ValueError(f"not a gathering: {gathering!r}")
        return self.folder / _GATHERINGS / gathering

    def _parts(self, gathering: str) -> list[Path]:
        return sorted(self._gathering(gathering).glob("[0-9]*"))


@contextmanager
def _explained(key: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _KINDS.get(error.errno or 0, StorageUnavailable)(f"{key}: {error.strerror}") from error


def _create(path: Path, sources: Iterable[Path]) -> None:
    """Write files one after the other into a new one, which is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".") as temporary:
        for source in sources:
            with source.open("rb") as content:
                shutil.copyfileobj(content, temporary, CHUNK)
        temporary.flush()
        os.fsync(temporary.fileno())
        # A link, unlike a rename, never takes the place of a file that is there.
        path.hardlink_to(temporary.name)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
