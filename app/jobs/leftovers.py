"""Rows of deleted jobs, and the history of jobs that ended long ago, deleted in batches.

One statement that deletes the million rows of a long job would hold the lock of SQLite for seconds and take hundreds of
megabytes. So a deleted job is marked, and nothing finds it from then on; its rows go some at a time. The caller opens a
transaction for each call and commits it.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, delete, func, inspect, select, tuple_, update
from sqlalchemy.orm import Session

from app.platform.database import now
from app.tables import Attempt, Event, Job, JobLabel, Metric, PastRun, Table

BATCH = 1000
"""Rows that one transaction deletes."""
_LARGE = Metric, Event, Attempt
"""The tables that may have many rows of one job, in the order in which they are deleted."""


def mark(session: Session, job_ids: Sequence[str]) -> None:
    """Let nothing find these jobs any more, and delete them at once where they have few rows."""
    gone = {"deleted_at": now(), "idempotency_key": None, "retry_of": None}
    session.execute(
        update(Job).where(Job.id.in_(job_ids)).values(gone), execution_options={"synchronize_session": False}
    )
    for table in (PastRun, JobLabel):
        session.execute(delete(table).where(table.job_id.in_(job_ids)))
    if all(_are_few(session, table, table.job_id.in_(job_ids)) for table in _LARGE):
        session.execute(delete(Job).where(Job.id.in_(job_ids)))


def deleted(session: Session, *, limit: int) -> Sequence[str]:
    """List jobs that were deleted and still have rows, those first that were deleted first."""
    marked = select(Job.id).where(Job.deleted_at.is_not(None)).order_by(Job.deleted_at).limit(limit)
    return session.scalars(marked).all()


def delete_some(session: Session, job_id: str) -> bool:
    """Delete some rows of a deleted job; return whether there are more."""
    for table in _LARGE:
        if delete_batch(session, table, table.job_id == job_id):
            return True
    session.execute(delete(Job).where(Job.id == job_id, Job.deleted_at.is_not(None)))
    return False


def with_old_history(session: Session, *, limit: int) -> Sequence[str]:
    """List jobs whose events and curve have been kept for long enough."""
    old = select(Job.id).where(Job.history_ends_at < now()).order_by(Job.history_ends_at).limit(limit)
    return session.scalars(old).all()


def forget_some_history(session: Session, job_id: str) -> bool:
    """Delete some events and steps of the curve of a job that ended long ago; return whether there are more."""
    for table in (Metric, Event):
        if delete_batch(session, table, table.job_id == job_id):
            return True
    session.execute(update(Job).where(Job.id == job_id).values(history_ends_at=None))
    return False


def delete_batch(session: Session, table: type[Table], *where: ColumnElement[bool]) -> bool:
    """Delete up to BATCH rows under a condition that an index finds; return whether there may be more."""
    key = _key_of(table)
    some = select(*key).where(*where).limit(BATCH)
    result = session.execute(
        delete(table).where(tuple_(*key).in_(some)), execution_options={"synchronize_session": False}
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == BATCH


def _are_few(session: Session, table: type[Table], condition: ColumnElement[bool]) -> bool:
    some = select(*_key_of(table)).where(condition).limit(BATCH + 1).subquery()
    return session.scalars(select(func.count()).select_from(some)).one() <= BATCH


def _key_of(table: type[Table]) -> Sequence[ColumnElement[Any]]:
    return list(inspect(table).primary_key)
