"""What the shards of an evaluation have found, fetched from the object store to where it is merged."""

import hashlib
import logging
from functools import partial
from pathlib import Path

from app import recording
from app.ownership import Claim
from app.schemas import Failure
from app.storage import ObjectStore, StorageUnavailable
from worker.delivery import Postponed
from worker.inputs import NotFetched
from worker.lease import Lease

log = logging.getLogger(__name__)

_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before another try to fetch a report."""


def report_of(folder: Path, number: int) -> Path:
    """Say where the report of a shard lies in the work folder."""
    return folder / f"shard-{number}.json"


def gather(folder: Path, lease: Lease, claim: Claim, store: ObjectStore) -> None:
    """Put the reports of all shards into the work folder. Raises NotFetched, Postponed, LostOwnership."""
    reports = lease.write(partial(recording.reports_of_shards, claim=claim))
    for number, (key, sha256) in enumerate(reports, start=1):
        report_of(folder, number).write_bytes(_fetch(key, sha256, lease, store))


def _fetch(key: str, sha256: str, lease: Lease, store: ObjectStore) -> bytes:
    for pause in (*_PAUSES, None):
        try:
            return _read(key, sha256, store)
        except StorageUnavailable as error:
            if pause is None:
                raise NotFetched(_unavailable(error)) from error
            log.warning("%s; trying again", error)
            if lease.ending.wait(pause):
                raise Postponed from error
    raise AssertionError("the last try returns or raises")


def _read(key: str, sha256: str, store: ObjectStore) -> bytes:
    content = b"".join(store.read(key))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageUnavailable(f"{key}: it is not what was stored")
    return content


def _unavailable(error: StorageUnavailable) -> Failure:
    return Failure(
        code="storage_unavailable",
        message=f"What a shard has found could not be fetched: {error}.",
        hint="Look after the object store, then post the job again.",
        field=None,
        retryable=True,
    )
