"""A checkpoint from the service to disk: resumed where the connection broke, and there only if its hash is right."""

import hashlib
import os
from io import BufferedRandom
from pathlib import Path

import httpx2

from client.connection import PASSING, Connection, Pauses
from client.errors import Answered, BadDownload, CannotWrite, TemperError
from client.records import Checkpoint


def download_file(connection: Connection, checkpoint: Checkpoint, target: Path, *, patience: float) -> None:
    """Fetch a checkpoint's file to `target`. Raises BadDownload, CannotWrite, Unreachable, Refused, ServiceFailed."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("w+b") as file:
            _fetch(connection, checkpoint, file, patience)
            _check(checkpoint, file)
        partial.replace(target)
    except OSError as error:
        raise CannotWrite(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _fetch(connection: Connection, checkpoint: Checkpoint, file: BufferedRandom, patience: float) -> None:
    pauses = Pauses(patience)
    while True:
        before = file.tell()
        try:
            _append(connection, checkpoint, file)
        except httpx2.TransportError as error:
            broken: TemperError = connection.unreachable(error)
        except Answered as error:
            if error.problem.status not in PASSING:
                raise
            broken = error
        else:
            return
        if file.tell() > before:
            pauses.restart()
        pauses.sleep_or_raise(broken)


def _append(connection: Connection, checkpoint: Checkpoint, file: BufferedRandom) -> None:
    """Add what the file lacks; begin anew where the answer is not the part that was asked for."""
    headers = {"Accept-Encoding": "identity"}
    if file.tell():
        headers |= {"Range": f"bytes={file.tell()}-", "If-Range": f'"{checkpoint.sha256}"'}
    with connection.download(f"/checkpoints/{checkpoint.id}/download", headers=headers) as response:
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()
        file.writelines(response.iter_bytes())


def _check(checkpoint: Checkpoint, file: BufferedRandom) -> None:
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != checkpoint.sha256:
        raise BadDownload(
            f"{checkpoint.id} arrived damaged, with sha256 {sha256} and not {checkpoint.sha256}: download it again"
        )
