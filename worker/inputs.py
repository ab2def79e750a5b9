"""What a job takes in of its project's own: fetched to this machine before the run, and kept there until it is over."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from app.files import Source
from app.inventory import Inventory
from app.schemas import Failure
from app.storage import ObjectStore, StorageUnavailable
from worker.cache import Cache

log = logging.getLogger(__name__)

_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before another try to fetch a file."""
_ENDINGS = {"base_model": ".safetensors", "dataset": ".zip", "extra_dataset": ".zip"}


class NotFetched(Exception):
    """A file that the job takes in cannot be had; `failure` says so in the job."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@contextmanager
def fetched(
    sources: Sequence[Source],
    folder: Path,
    inventory: Inventory,
    *,
    cache: Cache,
    store: ObjectStore,
    wait: Callable[[float], object],
    beat: Callable[[], None],
) -> Iterator[Inventory]:
    """Have the files on this machine as long as the block runs, and an inventory that knows where.

    folder: where they get the names that the run will call them by. wait: pauses between tries. beat: called now and
    then while files come. Raises NotFetched.
    """
    with ExitStack() as held:
        paths = {}
        for source in sources:
            path = folder / f"{source.field}-{source.name}{_ENDINGS[source.field]}"
            path.symlink_to(_hold(source, held, cache, store, wait, beat))
            paths[source.field] = path
        yield replace(inventory, fetched=paths)


def _hold(
    source: Source,
    held: ExitStack,
    cache: Cache,
    store: ObjectStore,
    wait: Callable[[float], object],
    beat: Callable[[], None],
) -> Path:
    for pause in (*_PAUSES, None):
        try:
            return held.enter_context(cache.hold(source.key, source.sha256, source.size, store, beat=beat))
        except StorageUnavailable as error:
            if pause is None:
                raise NotFetched(_unavailable(source, error)) from error
            log.warning("%s: %s; trying again", source.name, error)
            wait(pause)
            beat()
    raise AssertionError("the last try returns or raises")


def _unavailable(source: Source, error: StorageUnavailable) -> Failure:
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
