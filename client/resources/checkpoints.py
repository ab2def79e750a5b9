"""Checkpoints: list them and download their files, resumed where the connection broke and verified by hash."""

import hashlib
import os
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

import httpx2

from app.schemas.answer import Page
from app.schemas.checkpoints import Checkpoint
from app.schemas.jobs import Job
from client.connection import Connection
from client.errors import BadDownload, CannotWrite, NoCheckpoint
from client.resources.resource import Resource, path_of


class Checkpoints(Resource):
    """The checkpoints of the project's jobs: `temper.checkpoints`."""

    def list(self, job_id: str) -> Iterator[Checkpoint]:
        """Iterate over the checkpoints of a job."""
        return self._items(Page[Checkpoint], f"{path_of('jobs', job_id)}/checkpoints")

    def get(self, checkpoint_id: str) -> Checkpoint:
        """Fetch what is known of a checkpoint, without its file."""
        return self._get(Checkpoint, path_of("checkpoints", checkpoint_id))

    def download(self, job_or_checkpoint: str, path: str | Path) -> Path:
        """Download a checkpoint, or the latest one of a job, to a file or into a folder; return the file.

        A broken download is resumed where it broke. The file appears only when it is complete and has the announced
        hash; one that is there already, with this hash, is not sent again. Raises NoCheckpoint, BadDownload,
        CannotWrite.
        """
        checkpoint = self.get(self._checkpoint_of(job_or_checkpoint))
        path = Path(path)
        target = path / f"{checkpoint.id}.safetensors" if path.is_dir() else path
        download_file(self._connection, checkpoint, target, patience=self._connection.long_patience)
        return target

    def _checkpoint_of(self, job_or_checkpoint: str) -> str:
        if not job_or_checkpoint.startswith("job_"):
            return job_or_checkpoint
        job = self._get(Job, path_of("jobs", job_or_checkpoint))
        if job.checkpoint is None:
            raise NoCheckpoint(f"{job.id} has no checkpoint{'' if job.is_terminal else ' yet'}: it is {job.status}")
        return job.checkpoint


def download_file(connection: Connection, checkpoint: Checkpoint, target: Path, *, patience: float) -> None:
    """Download the file of a checkpoint to `target`. Raises BadDownload, CannotWrite, Unreachable, Refused,
    ServiceFailed."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        held = _hash(target) if target.exists() else None
        with partial.open("w+b") as file:
            if not _fetch(connection, checkpoint, file, patience, held):
                return
            _check(checkpoint, file)
        partial.replace(target)
    except OSError as error:
        raise CannotWrite(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _fetch(
    connection: Connection, checkpoint: Checkpoint, file: BufferedRandom, patience: float, held: str | None
) -> bool:
    """Read the content into `file`; return False where the service says that the client has it, as a file of the hash
    `held`."""
    retries = connection.retries(patience)
    while True:
        with retries.pause_on_failure(), connection.errors():
            before = file.tell()
            try:
                return _append(connection, checkpoint, file, held)
            finally:
                if file.tell() > before:
                    retries.restart()


def _append(connection: Connection, checkpoint: Checkpoint, file: BufferedRandom, held: str | None) -> bool:
    """Append the missing bytes; start from the beginning if the answer is not the range that was asked for. Return
    False for the answer that there is nothing new."""
    headers = {"Accept-Encoding": "identity"}
    if held:
        headers["If-None-Match"] = f'"{held}"'
    if file.tell():
        headers |= {"Range": f"bytes={file.tell()}-", "If-Range": f'"{checkpoint.sha256}"'}
    with connection.download(f"{path_of('checkpoints', checkpoint.id)}/download", headers=headers) as response:
        if response.status_code == httpx2.codes.NOT_MODIFIED:
            return False
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()
        file.writelines(response.iter_bytes())
        return True


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(checkpoint: Checkpoint, file: BufferedRandom) -> None:
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != checkpoint.sha256:
        raise BadDownload(
            f"{checkpoint.id} arrived damaged, with sha256 {sha256} and not {checkpoint.sha256}: download it again"
        )
