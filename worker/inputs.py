"""What a job takes in of its project's own: fetched to this machine before the run, and kept there until it is over."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from app.assets.inputs import Source
from app.assets.registry import Registry
from app.storage import ObjectStore, StorageUnavailable
from worker import failures
from worker.cache import Cache
from worker.failures import NotFetched
from worker.fetching import go_on, patiently

_ENDINGS = {"base_model": ".safetensors", "dataset": ".zip", "extra_dataset": ".zip"}


@contextmanager
def fetched(
    sources: Sequence[Source],
    folder: Path,
    registry: Registry,
    *,
    cache: Cache,
    store: ObjectStore,
    ending: Event,
) -> Iterator[Registry]:
    """Have the files on this machine as long as the block runs, and an registry that knows where.

    folder: where they get the names that the run will call them by. ending: set when the run is to end. Raises
    NotFetched, Postponed.
    """
    with ExitStack() as held:
        paths = {}
        for source in sources:
            path = folder / f"{source.field}-{source.name}{_ENDINGS[source.field]}"
            path.symlink_to(_hold(source, held, cache, store, ending))
            paths[source.field] = path
        yield replace(registry, fetched=paths)


def _hold(source: Source, held: ExitStack, cache: Cache, store: ObjectStore, ending: Event) -> Path:
    beat = partial(go_on, ending)
    try:
        return patiently(
            lambda: held.enter_context(cache.hold(source.key, source.sha256, source.size, store, beat=beat)), ending
        )
    except StorageUnavailable as error:
        raise NotFetched(failures.input_unavailable(source, error)) from error
