"""Checkpoints that a project's jobs have made: find and list them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.platform.paging import Part, Place, list_rows
from app.tables import Checkpoint, Job


def list_checkpoints(session: Session, job_id: str, *, after: str | None, limit: int) -> Part[Checkpoint]:
    """List a job's checkpoints by age."""
    place = Place([Checkpoint.job_id], [job_id])
    return list_rows(session, Checkpoint, Checkpoint.id, place, after=after, limit=limit, order="asc")


def find_checkpoint(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """Find a checkpoint of this project's jobs."""
    owned = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id)
    owned = owned.where(Job.project_id == project_id, Job.deleted_at.is_(None))
    return session.scalars(owned.where(Checkpoint.id == checkpoint_id)).one_or_none()
