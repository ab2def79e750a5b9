"""A file from disk to the service: in parts, some at once, resumed where it broke, ready only if its hash is right."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import BinaryIO
from urllib.parse import quote

import httpx2

from client.connection import PASSING, Connection, Pauses
from client.errors import Answered, CannotRead, NotUploaded, TemperError
from client.records import Page, Upload, UploadRequests, read

_AT_ONCE = 4
"""Parts that are under way at the same time."""
_CHUNK = 1024 * 1024
_LONGEST_PAUSE = 5.0

OnProgress = Callable[[str, int, int], None]
"""Is told what is being done (hashing, sending), how many bytes of it are done, and of how many."""


def upload_file(
    connection: Connection, path: Path, *, purpose: str, name: str, patience: float, on_progress: OnProgress
) -> Upload:
    """Send a file; go on with an earlier try that broke off, where the service has one. Raises CannotRead, NotUploaded,
    Unreachable, Refused, ServiceFailed."""
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
    """Find a try of the same file that broke off, or announce the file: once, however often the connection breaks."""
    pauses = Pauses(patience)
    query = {"status": "pending", "sha256": sha256, "purpose": purpose}
    wish = {"filename": name, "bytes": size, "sha256": sha256, "purpose": purpose}
    while True:
        try:
            found = read(Page[Upload], connection.request("GET", "/uploads", patience=0, params=query).content)
            same = [upload for upload in found.data if (upload.bytes, upload.filename) == (size, name)]
            if same:
                return _get(connection, same[0].id, patience)
            return read(Upload, connection.request("POST", "/uploads", patience=0, json=wish).content)
        except TemperError as error:
            _pause_or_raise(pauses, error)


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
        self._given_up = Event()
        self._sent = sum(self._size_of(number) for number in upload.received or ())

    def send_all(self) -> None:
        """Send them, some at once."""
        there = set(self._upload.received or ())
        missing = [number for number in range(1, self._upload.parts + 1) if number not in there]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for size in pool.map(self._send, missing):
                self._sent += size
                self._on_progress("sending", self._sent, self._upload.bytes)

    def _send(self, number: int) -> int:
        pauses = Pauses(self._patience)
        size = self._size_of(number)
        while not self._given_up.is_set():
            try:
                self._send_once(number, size)
            except TemperError as error:
                try:
                    _pause_or_raise(pauses, error)
                except BaseException:
                    self._given_up.set()
                    raise
            else:
                return size
        return 0

    def _send_once(self, number: int, size: int) -> None:
        with self._path.open("rb") as file:
            digest = hashlib.sha256()
            for chunk in _slice(file, (number - 1) * self._upload.part_bytes, size):
                digest.update(chunk)
            wish = {"parts": [{"number": number, "sha256": digest.hexdigest()}]}
            answer = self._connection.request("POST", f"{_path(self._upload.id)}/parts", patience=0, json=wish)
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
        raise CannotRead(f"{file.name} has become shorter while it was sent")


def _complete(connection: Connection, upload: Upload, patience: float) -> Upload:
    """Have the whole verified, and wait for that."""
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
    return f"/uploads/{quote(upload_id, safe='')}"


def _pause_or_raise(pauses: Pauses, error: TemperError) -> None:
    """Pause before the next try where another one may succeed."""
    if isinstance(error, Answered) and error.problem.status not in PASSING | {httpx2.codes.INTERNAL_SERVER_ERROR}:
        raise error
    if isinstance(error, CannotRead):
        raise error
    pauses.sleep_or_raise(error)
