"""Objects as files in a folder of this machine."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from app.storage.contract import CHUNK, NotStored, StorageFull, StorageUnavailable, checked

_MULTIPART = ".multipart"
"""Folder of the multipart uploads; no key begins with a dot."""
_ERRORS = {errno.ENOSPC: StorageFull, errno.EDQUOT: StorageFull, errno.ENOENT: NotStored}


class LocalStore:
    """An `ObjectStore` in a folder, which only the API reaches."""

    presigner = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.multipart = LocalMultipart(folder)

    def put(self, key: str, source: Path) -> None:
        path = self._path(key)
        with _translated_errors(key):
            _create(path, [source])

    def size(self, key: str) -> int:
        with _translated_errors(key):
            return self._path(key).stat().st_size

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        with _translated_errors(key), self._path(key).open("rb") as file:
            left = self.size(key) - start if stop is None else stop - start
            file.seek(start)
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def keys(self, prefix: str = "", *, after: str = "") -> Iterator[str]:
        with _translated_errors(prefix):
            folder = self._path(prefix) if prefix else self.folder
            files = [path for path in folder.rglob("[!.]*") if path.is_file()]
        keys = sorted(path.relative_to(self.folder).as_posix() for path in files)
        yield from (key for key in keys if not key.startswith(".") and key > after)

    def copy(self, key: str, target: str) -> None:
        path = self._path(target)
        with _translated_errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.exists() and path.samefile(self._path(key))):
                path.hardlink_to(self._path(key))
            _sync(path.parent)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _translated_errors(key):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        pass

    def _path(self, key: str) -> Path:
        return self.folder / checked(key)


class LocalMultipart:
    """`Multipart` of a `LocalStore`: a folder for each upload, with one file per part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, key: str) -> str:
        multipart_id = secrets.token_hex(16)
        with _translated_errors(checked(key)):
            self._parts_folder(multipart_id).mkdir(parents=True)
        return multipart_id

    def upload_part(self, key: str, multipart_id: str, number: int, source: Path) -> None:
        folder = self._parts_folder(multipart_id)
        temporary = folder / f".{secrets.token_hex(8)}"
        with _translated_errors(checked(key)):
            try:
                shutil.copyfile(source, temporary)
                temporary.replace(folder / f"{number:05}")
            finally:
                temporary.unlink(missing_ok=True)

    def list_parts(self, key: str, multipart_id: str) -> Mapping[int, int]:
        with _translated_errors(checked(key)):
            return {int(path.name): path.stat().st_size for path in self._parts(multipart_id)}

    def complete(self, key: str, multipart_id: str) -> None:
        path, whole = self._folder / checked(key), self._parts_folder(multipart_id) / "whole"
        with _translated_errors(key):
            parts = self._parts(multipart_id)
            if not parts:
                path.stat()
                return
            # An earlier call may have made the link and then have been interrupted.
            if not (path.exists() and whole.exists() and path.samefile(whole)):
                whole.unlink(missing_ok=True)
                _create(whole, parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(whole)
                _sync(path.parent)
        self.abort(key, multipart_id)

    def abort(self, key: str, multipart_id: str) -> None:
        with _translated_errors(checked(key)):
            shutil.rmtree(self._parts_folder(multipart_id), ignore_errors=True)

    def _parts_folder(self, multipart_id: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", multipart_id):
            raise ValueError(f"not an id of a multipart upload: {multipart_id!r}")
        return self._folder / _MULTIPART / multipart_id

    def _parts(self, multipart_id: str) -> list[Path]:
        return sorted(self._parts_folder(multipart_id).glob("[0-9]*"))


@contextmanager
def _translated_errors(key: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _ERRORS.get(error.errno or 0, StorageUnavailable)(f"{key}: {error.strerror}") from error


def _create(path: Path, sources: Iterable[Path]) -> None:
    """Create a file that is the concatenation of others, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".") as temporary:
        for source in sources:
            with source.open("rb") as content:
                shutil.copyfileobj(content, temporary, CHUNK)
        temporary.flush()
        os.fsync(temporary.fileno())
        # Unlike a rename, a link never replaces an existing file.
        path.hardlink_to(temporary.name)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
