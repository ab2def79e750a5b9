"""What the shards of an evaluation have found, fetched from the object store to where it is merged."""

from functools import partial
from pathlib import Path

from app.jobs import ingest
from app.jobs.leases import Claim
from app.storage import ObjectStore, StorageUnavailable
from worker import failures
from worker.failures import NotFetched
from worker.fetching import patiently, whole
from worker.lease import Lease


def report_of(folder: Path, number: int) -> Path:
    """Say where the report of a shard lies in the work folder."""
    return folder / f"shard-{number}.json"


def gather(folder: Path, lease: Lease, claim: Claim, store: ObjectStore) -> None:
    """Put the reports of all shards into the work folder. Raises NotFetched, Postponed, LeaseLost."""
    reports = lease.write(partial(ingest.reports_of_shards, claim=claim))
    for number, (key, sha256) in enumerate(reports, start=1):
        try:
            content = patiently(partial(_read, key, sha256, store), lease.ending)
        except StorageUnavailable as error:
            raise NotFetched(failures.shard_unavailable(error)) from error
        report_of(folder, number).write_bytes(content)


def _read(key: str, sha256: str, store: ObjectStore) -> bytes:
    return b"".join(whole(key, sha256, store))
