"""Objects out of the store: whole or not at all, tried again where it is away, and left where the run is to end."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from threading import Event
from typing import TypeVar

from app.storage import ObjectStore, StorageUnavailable

log = logging.getLogger(__name__)
Fetched = TypeVar("Fetched")

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before another try."""


class Postponed(Exception):
    """The run was asked to end while a file was on its way."""


def whole(key: str, sha256: str, store: ObjectStore) -> Iterator[bytes]:
    """Read an object. Raises StorageUnavailable, after its last bytes where they are not all what was stored."""
    arrived = hashlib.sha256()
    for chunk in store.read(key):
        arrived.update(chunk)
        yield chunk
    if arrived.hexdigest() != sha256:
        raise StorageUnavailable(f"{key}: it is not what was stored")


def patiently(fetch: Callable[[], Fetched], ending: Event) -> Fetched:
    """Fetch something, and try again where it cannot be had. Raises Postponed, and StorageUnavailable by the last
    try."""
    for pause in PAUSES:
        try:
            return fetch()
        except StorageUnavailable as error:
            log.warning("%s; trying again", error)
            if ending.wait(pause):
                raise Postponed from error
    return fetch()


def go_on(ending: Event) -> None:
    """Look up from what takes long. Raises Postponed."""
    if ending.is_set():
        raise Postponed
