"""The history of a job: each change that a reader can see raises the job's version and may append events."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from app.platform import leases
from app.platform.database import now
from app.tables import Event, Job


def change_jobs(session: Session, *where: ColumnElement[bool], events: int, **values: Any) -> Sequence[Job]:
    """Change jobs in one statement, raise their version, and reserve numbers for `events` events of each."""
    visible = {"version": Job.version + 1, "updated_at": now(), "event_seq": Job.event_seq + events}
    return leases.change(session, Job, *where, **visible, **values)


def append_events(session: Session, job: Job, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Write events with the numbers that `change_jobs` has reserved, which are the latest ones."""
    first = job.event_seq - len(entries) + 1
    for seq, (kind, data) in enumerate(entries, start=first):
        session.add(Event(job_id=job.id, seq=seq, type=kind, data=dict(data)))
