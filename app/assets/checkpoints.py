"""Checkpoints that a project's jobs have made: add, find and list them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.platform.paging import Part, Place, list_rows
from app.projects.ids import next_checkpoint_id
from app.tables import Checkpoint, Job, State
from core.schema.events import Saved


def add_checkpoint(session: Session, job_id: str, attempt: int, saved: Saved | State, *, key: str) -> Checkpoint:
    """Write the row of a checkpoint whose file the object store has already. The caller has locked the job."""
    checkpoint = Checkpoint(
        id=next_checkpoint_id(session, job_id),
        job_id=job_id,
        attempt=attempt,
        step=saved.step,
        epoch=saved.epoch,
        key=key,
        size=saved.size,
        sha256=saved.sha256,
    )
    session.add(checkpoint)
    return checkpoint


def list_checkpoints(session: Session, job_id: str, *, after: str | None, limit: int) -> Part[Checkpoint]:
    """List a job's checkpoints by age."""
    place = Place([Checkpoint.job_id], [job_id])
    return list_rows(session, Checkpoint, Checkpoint.id, place, after=after, limit=limit, order="asc")


def find_checkpoint(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """Find a checkpoint of this project's jobs."""
    owned = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id)
    owned = owned.where(Job.project_id == project_id, Job.deleted_at.is_(None))
    return session.scalars(owned.where(Checkpoint.id == checkpoint_id)).one_or_none()
