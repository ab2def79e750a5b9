"""Who may write to a job: the worker that claimed it last, by its attempt; and how every write becomes history.

A worker owns a job under a lease in the database's own time. A write under an earlier attempt changes nothing and
raises LeaseLost. Each change that a reader can see makes a new version of the job and may add to its history.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session

from app.platform.database import now
from app.tables import HELD, Event, Job
from core.schema.spec import AnySpec

Row = TypeVar("Row")


class LeaseLost(Exception):
    """Another worker has the job by now, or it has ended: whoever asked must stop at once."""


@dataclass(frozen=True)
class Shard:
    """Which part of an evaluation a job is."""

    of: str
    """The job that is the whole."""
    number: int
    """From 1."""
    count: int


@dataclass(frozen=True)
class Claim:
    """One worker's hold on a job."""

    job_id: str
    attempt: int
    spec: AnySpec
    shard: Shard | None = None
    """What there is to evaluate, where that is not the whole."""
    merges: int = 0
    """Of how many shards the reports are to be put together, where that is all that there is to do."""

    @property
    def prefix(self) -> str:
        """Where this attempt's files go in the object store; nobody else writes there."""
        return attempt_prefix(self.job_id, self.attempt)

    @property
    def whole(self) -> str:
        """The job that was posted: this one, or the one that it is a shard of."""
        return self.shard.of if self.shard else self.job_id


def job_prefix(job_id: str) -> str:
    """Where a job's files lie in the object store."""
    return f"jobs/{job_id}"


def attempt_prefix(job_id: str, attempt: int) -> str:
    """Where an attempt's files lie in the object store."""
    return f"{job_prefix(job_id)}/attempts/{attempt}"


def log_key(job_id: str, attempt: int, part: int) -> str:
    """Where a part of an attempt's log lies in the object store; parts count from 1."""
    return f"{attempt_prefix(job_id, attempt)}/logs/{part:06}.log"


def owned(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The condition under which the claim still holds."""
    return Job.id == claim.job_id, Job.attempt == claim.attempt, Job.status.in_(HELD)


def only(claim: Claim, rows: Sequence[Row]) -> Row:
    """Give the one row that `owned` has found. Raises LeaseLost."""
    if not rows:
        raise LeaseLost(claim.job_id)
    return rows[0]


def change(session: Session, *where: ColumnElement[bool], events: int, **values: Any) -> Sequence[Job]:
    """Change jobs, make it visible, and reserve places in their history."""
    changed = {"version": Job.version + 1, "updated_at": now(), "event_seq": Job.event_seq + events, **values}
    statement = update(Job).where(*where).values(changed).returning(Job)
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement, execution_options=options).all()


def append(session: Session, job: Job, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Write into the places that `change` has reserved, which are the last ones."""
    first = job.event_seq - len(entries) + 1
    for seq, (kind, data) in enumerate(entries, start=first):
        session.add(Event(job_id=job.id, seq=seq, type=kind, data=dict(data)))
