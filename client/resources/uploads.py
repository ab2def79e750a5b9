"""Uploads: send files in parts, several in parallel, resumed where an earlier upload broke, verified by hash."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import BinaryIO

from app.schemas.answer import Page
from app.schemas.uploads import Upload, UploadRequests
from client.connection import Connection
from client.errors import CannotRead, NotUploaded
from client.reading import read
from client.resources.resource import Resource, path_of
from client.retries import PASSING

_PARALLEL_PARTS = 4
_CHUNK = 1024 * 1024
_RETRIED = PASSING | {500}
"""Statuses after which a part is sent again. Repeating a part is harmless."""
_LONGEST_PAUSE = 5.0

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done (hashing or sending), the bytes done, and the bytes in total."""


class Uploads(Resource):
    """The uploads of the project: `temper.uploads`."""

    def send(
        self, path: str | Path, *, purpose: str, name: str | None = None, on_progress: OnProgress = lambda *_: None
    ) -> Upload:
        """Upload a file and wait until the service has verified its hash.

        purpose: dataset or model. name: the file's name in the service, by default its own. An upload that broke off,
        in this process or an earlier one, continues where it broke. Raises CannotRead, NotUploaded.
        """
        path = Path(path)
        return upload_file(
            self._connection,
            path,
            purpose=purpose,
            name=name or path.name,
            patience=self._connection.long_patience,
            on_progress=on_progress,
        )


def upload_file(
    connection: Connection, path: Path, *, purpose: str, name: str, patience: float, on_progress: OnProgress
) -> Upload:
    """Send a file, or the rest of it if the service has an earlier upload of it that broke off. Raises CannotRead,
    NotUploaded, Unreachable, Refused, ServiceFailed."""
    try:
        size = path.stat().st_size
        sha256 = _hash(path, size, on_progress)
        upload = _begin(connection, name=name, size=size, sha256=sha256, purpose=purpose, patience=patience)
        _Sender(connection, path, upload, patience, on_progress).send_all()
    except OSError as error:
        raise CannotRead(f"cannot read {path}: {error.strerror}") from error
    return _complete(connection, upload, patience)


def _hash(path: Path, size: int, on_progress: OnProgress) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_progress("hashing", done, size)
    return digest.hexdigest()


def _begin(connection: Connection, *, name: str, size: int, sha256: str, purpose: str, patience: float) -> Upload:
    """Find an earlier upload of the same file that broke off, or announce a new one.

    Each attempt looks again, because an announcement whose answer was lost must not be repeated.
    """
    retries = connection.retries(patience)
    query = {"status": "pending", "sha256": sha256, "purpose": purpose}
    announced = {"filename": name, "bytes": size, "sha256": sha256, "purpose": purpose}
    while True:
        with retries.pause_on_failure(statuses=_RETRIED):
            found = read(Page[Upload], connection.request("GET", "/uploads", patience=0, params=query).content)
            same = [upload for upload in found.data if (upload.bytes, upload.filename) == (size, name)]
            if same:
                return _get(connection, same[0].id, patience)
            return read(Upload, connection.request("POST", "/uploads", patience=0, json=announced).content)


class _Sender:
    """Sends the parts that the service does not have yet."""

    def __init__(
        self, connection: Connection, path: Path, upload: Upload, patience: float, on_progress: OnProgress
    ) -> None:
        self._connection = connection
        self._path = path
        self._upload = upload
        self._patience = patience
        self._on_progress = on_progress
        self._aborted = Event()
        self._sent = sum(self._size_of(number) for number in upload.received or ())

    def send_all(self) -> None:
        """Send the missing parts, several in parallel."""
        there = set(self._upload.received or ())
        missing = [number for number in range(1, self._upload.parts + 1) if number not in there]
        with ThreadPoolExecutor(_PARALLEL_PARTS) as pool:
            for size in pool.map(self._send, missing):
                self._sent += size
                self._on_progress("sending", self._sent, self._upload.bytes)

    def _send(self, number: int) -> int:
        retries = self._connection.retries(self._patience)
        size = self._size_of(number)
        try:
            while not self._aborted.is_set():
                with retries.pause_on_failure(statuses=_RETRIED):
                    self._send_once(number, size)
                    return size
        except BaseException:
            self._aborted.set()
            raise
        return 0

    def _send_once(self, number: int, size: int) -> None:
        with self._path.open("rb") as file:
            digest = hashlib.sha256()
            for chunk in _slice(file, (number - 1) * self._upload.part_bytes, size):
                digest.update(chunk)
            wanted = {"parts": [{"number": number, "sha256": digest.hexdigest()}]}
            answer = self._connection.request("POST", f"{_path(self._upload.id)}/parts", patience=0, json=wanted)
            (request,) = read(UploadRequests, answer.content).data
            content = _slice(file, (number - 1) * self._upload.part_bytes, size)
            headers = {"Content-Length": str(size), **request.headers}
            self._connection.put(request.url, content=content, headers=headers)

    def _size_of(self, number: int) -> int:
        return min(self._upload.part_bytes, self._upload.bytes - (number - 1) * self._upload.part_bytes)


def _slice(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size and (chunk := file.read(min(_CHUNK, size))):
        size -= len(chunk)
        yield chunk
    if size:
        raise CannotRead(f"{file.name} became shorter during the upload")


def _complete(connection: Connection, upload: Upload, patience: float) -> Upload:
    """Ask the service to verify the file, and wait until it has."""
    answer = connection.request("POST", f"{_path(upload.id)}/complete", patience=patience)
    pause = 0.1
    while (upload := read(Upload, answer.content)).status == "verifying":
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        answer = connection.request("GET", _path(upload.id), patience=patience)
    if upload.status != "completed":
        reason = upload.failure.message if upload.failure else f"it is {upload.status}"
        raise NotUploaded(f"{upload.filename} has not been uploaded: {reason}")
    return upload


def _get(connection: Connection, upload_id: str, patience: float) -> Upload:
    return read(Upload, connection.request("GET", _path(upload_id), patience=patience).content)


def _path(upload_id: str) -> str:
    return path_of("uploads", upload_id)
