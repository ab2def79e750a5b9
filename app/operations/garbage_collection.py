"""Garbage collection in the object store: files of deleted jobs, files of attempts that no row names, and states of
failed or cancelled jobs that were not retried in time. `app.operations.maintenance` runs it."""

import logging
import time
from collections.abc import Iterator
from itertools import groupby

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session, aliased
from ulid import ULID

from app.jobs.leases import attempt_prefix, job_prefix, log_key
from app.platform.database import Database, seconds_from_now
from app.platform.ids import is_id
from app.storage import ObjectStore
from app.tables import Attempt, Checkpoint, Job, State

log = logging.getLogger(__name__)

_DAY = 24 * 60 * 60
_AT_ONCE = 100


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
            keys = session.scalars(select(State.key).where(State.job_id == job_id)).all()
            named = set(session.scalars(select(Checkpoint.key).where(Checkpoint.job_id == job_id)))
            session.execute(delete(State).where(State.job_id == job_id))
        for key in set(keys) - named:
            store.delete(key)


def sweep_orphans(database: Database, store: ObjectStore) -> None:
    """Delete the files of deleted jobs, and files that no row names a day after the end of their attempt. Raises
    StorageUnavailable."""
    for job_id, keys in groupby(store.keys("jobs"), key=lambda key: key.split("/")[1]):
        found = list(keys)
        with database.reading() as session:
            exists = session.get(Job, job_id) is not None
            named = set(_named(session, job_id))
            ended = _prefixes_of_ended_attempts(session, job_id)
        if not exists and _is_old(job_id):
            log.info("the files of job %s, which is no more, are removed", job_id)
            store.delete(job_prefix(job_id))
        for key in found:
            if key not in named and key.startswith(ended):
                store.delete(key)


def _named(session: Session, job_id: str) -> Iterator[str]:
    """Yield the keys that the job's rows name."""
    yield from session.scalars(select(Checkpoint.key).where(Checkpoint.job_id == job_id))
    yield from session.scalars(select(State.key).where(State.job_id == job_id))
    yield session.scalar(select(Job.report_key).where(Job.id == job_id)) or ""
    for attempt in session.scalars(select(Attempt).where(Attempt.job_id == job_id)):
        yield from (log_key(job_id, attempt.attempt, part) for part in range(1, attempt.log_parts + 1))


def _prefixes_of_ended_attempts(session: Session, job_id: str) -> tuple[str, ...]:
    for_long = Attempt.job_id == job_id, Attempt.ended_at < seconds_from_now(-_DAY)
    attempts = session.scalars(select(Attempt.attempt).where(*for_long))
    return tuple(f"{attempt_prefix(job_id, attempt)}/" for attempt in attempts)


def _is_old(job_id: str) -> bool:
    """Whether the id is more than a day old: a database put back from yesterday does not know the jobs of today."""
    return is_id("job", job_id) and time.time() - ULID.from_str(job_id.removeprefix("job_")).timestamp > _DAY
