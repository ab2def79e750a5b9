"""Garbage collection in the object store: files of deleted jobs and assets, files of attempts that no row names, and
states of failed or cancelled jobs that were not retried in time. `app.operations.maintenance` runs it."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session, aliased
from ulid import ULID

from app.assets import assets, inspections
from app.jobs.leases import attempt_prefix, job_prefix, log_key
from app.platform.database import Database, seconds_from_now
from app.platform.ids import is_id
from app.projects import totals
from app.storage import ObjectStore
from app.tables import Attempt, Checkpoint, Job, State

log = logging.getLogger(__name__)

_DAY = 24 * 60 * 60
_AT_ONCE = 100
_SWEEP_SECONDS = 20.0
"""The longest part of a sweep."""
PAUSE_SECONDS = 3600.0
"""Between the begins of two sweeps of orphans."""
ASSETS_PAUSE_SECONDS = 600.0
"""Between the begins of two sweeps of the files of assets."""


def sweep_states(database: Database, store: ObjectStore, *, days: float) -> None:
    """Delete the states of jobs that failed or were cancelled more than `days` ago, and states that a worker left when
    it died after the success of its job. For a shard, the status of its parent counts. Raises StorageUnavailable."""
    whole = aliased(Job)
    ended_badly = and_(whole.status.in_(("failed", "cancelled")), whole.finished_at < seconds_from_now(-days * _DAY))
    unneeded = or_(whole.status == "succeeded", ended_badly)
    with database.reading() as session:
        kept = select(Job.id).join(State, State.job_id == Job.id)
        kept = kept.join(whole, whole.id == func.coalesce(Job.parent_id, Job.id))
        kept = kept.where(unneeded).distinct().limit(_AT_ONCE)
        job_ids = session.scalars(kept).all()
    for job_id in job_ids:
        with database.writing() as session:
            states = session.execute(select(State.key, State.size).where(State.job_id == job_id)).all()
            named = set(session.scalars(select(Checkpoint.key).where(Checkpoint.job_id == job_id)))
            removed = session.scalars(delete(State).where(State.job_id == job_id).returning(State.key)).all()
            sizes = [state.size for state in states if state.key in removed and state.key not in named]
            project_id = session.scalars(select(Job.project_id).where(Job.id == job_id)).one_or_none()
            if project_id:
                totals.count_bytes(session, project_id, -sum(sizes))
        for key in {state.key for state in states} - named:
            store.delete(key)


@dataclass
class Place:
    """Where a sweep goes on."""

    after: str = ""
    """The last key that was looked at; empty at the begin."""
    begun_at: float = -math.inf
    """When it last was at the begin."""


def sweep_orphans(database: Database, store: ObjectStore, place: Place | None = None) -> None:
    """Delete the files of deleted jobs, and files that no row names a day after the end of their attempt. Raises
    StorageUnavailable.

    place: look at the files of some jobs only, from there on, and change it to where the next call goes on. A sweep
    through all begins once in PAUSE_SECONDS. None: look at all files.
    """
    for some in _by_owner(store, "jobs", place, pause=PAUSE_SECONDS):
        _sweep(database, store, some)


def sweep_asset_files(database: Database, store: ObjectStore, places: Mapping[str, Place] | None = None) -> None:
    """Delete the objects of data sets and models that are gone, and those of inspections that were taken over. Raises
    StorageUnavailable.

    places: of each kind of asset, as for `sweep_orphans`; a sweep begins once in ASSETS_PAUSE_SECONDS.
    """
    for kind in assets.TABLES:
        place = None if places is None else places[kind]
        for some in _by_owner(store, f"{kind}s", place, pause=ASSETS_PAUSE_SECONDS):
            with database.reading() as session:
                gone = inspections.leftovers(session, some)
            for key in gone:
                store.delete(key)


def _by_owner(
    store: ObjectStore, prefix: str, place: Place | None, *, pause: float
) -> Iterator[Mapping[str, Sequence[str]]]:
    """Yield the keys under a prefix by the job or asset that they belong to, _AT_ONCE of these at a time.

    With a place, it starts there, ends after _SWEEP_SECONDS, and begins at the front once in `pause` seconds.
    """
    ends = place is not None
    place = place or Place()
    if not place.after:
        if time.monotonic() - place.begun_at < pause:
            return
        place.begun_at = time.monotonic()
    until = time.monotonic() + _SWEEP_SECONDS
    by_owner = groupby(store.keys(prefix, after=place.after), key=lambda key: key.split("/")[1])
    while some := {owner: list(keys) for owner, keys in islice(by_owner, _AT_ONCE)}:
        yield some
        place.after = max(some[max(some)])
        if ends and time.monotonic() > until:
            return
    place.after = ""


def _sweep(database: Database, store: ObjectStore, found: Mapping[str, Sequence[str]]) -> None:
    """Delete those of the keys of some jobs that no row needs, with a few statements for all of them."""
    with database.reading() as session:
        there = set(session.scalars(select(Job.id).where(Job.id.in_(found), Job.deleted_at.is_(None))))
        named = set(_named(session, list(found)))
        ended = _prefixes_of_ended_attempts(session, list(found))
    for job_id, keys in found.items():
        if job_id not in there and _is_old(job_id):
            log.info("the files of job %s, which is no more, are removed", job_id)
            store.delete(job_prefix(job_id))
            continue
        for key in keys:
            if key not in named and key.startswith(ended.get(job_id, ())):
                store.delete(key)


def _named(session: Session, job_ids: Sequence[str]) -> Iterator[str]:
    """Yield the keys that the jobs' rows name."""
    yield from session.scalars(select(Checkpoint.key).where(Checkpoint.job_id.in_(job_ids)))
    yield from session.scalars(select(State.key).where(State.job_id.in_(job_ids)))
    yield from (key for key in session.scalars(select(Job.report_key).where(Job.id.in_(job_ids))) if key)
    logs = select(Attempt.job_id, Attempt.attempt, Attempt.log_parts).where(Attempt.job_id.in_(job_ids))
    for job_id, attempt, parts in session.execute(logs):
        yield from (log_key(job_id, attempt, part) for part in range(1, parts + 1))


def _prefixes_of_ended_attempts(session: Session, job_ids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    for_long = Attempt.job_id.in_(job_ids), Attempt.ended_at < seconds_from_now(-_DAY)
    found: dict[str, tuple[str, ...]] = {}
    for job_id, attempt in session.execute(select(Attempt.job_id, Attempt.attempt).where(*for_long)):
        found[job_id] = (*found.get(job_id, ()), f"{attempt_prefix(job_id, attempt)}/")
    return found


def _is_old(job_id: str) -> bool:
    """Whether the id is more than a day old: a database put back from yesterday does not know the jobs of today."""
    return is_id("job", job_id) and time.time() - ULID.from_str(job_id.removeprefix("job_")).timestamp > _DAY
