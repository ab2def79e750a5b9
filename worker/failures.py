"""What people are told of a run that could not be done here, whatever the run itself has said."""

import errno

from app.assets.inputs import Source
from app.schemas import Failure
from app.storage import StorageFull, StorageUnavailable


class NotFetched(Exception):
    """A file that the job takes in cannot be had; `failure` says so in the job."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def not_started(error: OSError) -> Failure:
    """Say that the worker's machine could not start it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Failure(
        code="disk_full" if full else "internal_error",
        message=f"The worker could not start the run: {error}.",
        hint=f"{'Make room on' if full else 'Look after'} the worker's machine, then post the job again.",
        field=None,
        retryable=True,
    )


def too_few_gpus(wanted: int, there: int) -> Failure:
    """Say that the machine is too small for it."""
    return Failure(
        code="bad_input",
        message=f"The job asks for {wanted} GPUs; the worker that took it has {there}.",
        hint=f"Set gpus to {max(there, 1)}, or run a worker on a machine that has {wanted}.",
        field="gpus",
        retryable=False,
    )


def input_unavailable(source: Source, error: StorageUnavailable) -> Failure:
    """Say that a file of the project's own cannot be fetched."""
    return Failure(
        code="storage_unavailable",
        message=f"The {source.field} {source.name} could not be fetched: {error}.",
        hint="Look after the object store, then post the job again.",
        field=source.field,
        retryable=True,
    )


def gone(error: Exception) -> Failure:
    """Say that a file of the job has been removed meanwhile."""
    return Failure(
        code="bad_input",
        message=f"{error}.",
        hint="Upload it again, then post the job again.",
        field=None,
        retryable=False,
    )


def shard_unavailable(error: StorageUnavailable) -> Failure:
    """Say that what a shard has found cannot be fetched."""
    return Failure(
        code="storage_unavailable",
        message=f"What a shard has found could not be fetched: {error}.",
        hint="Look after the object store, then post the job again.",
        field=None,
        retryable=True,
    )


def crashed(exit_code: int, last_words: str) -> Failure:
    """Say that its process has ended without a word."""
    return Failure(
        code="internal_error",
        message=f"The training process ended with exit code {exit_code} and no reason. Its last words: {last_words}",
        hint="This is a mistake in Temper or in its installation: please report it with the last words.",
        field=None,
        retryable=False,
    )


def not_stored(error: StorageUnavailable, kept: str) -> Failure:
    """Say that what it has made could not be stored, and where it is kept, if anywhere."""
    full = isinstance(error, StorageFull)
    return Failure(
        code="disk_full" if full else "storage_unavailable",
        message=f"A file of the job could not be stored: {error}.",
        hint=f"{'Make room in' if full else 'Look after'} the object store, then retry the job. {kept}".strip(),
        field=None,
        retryable=True,
    )
