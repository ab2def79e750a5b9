"""Checkpoints that a project's jobs have made: add, find and list them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.platform.ids import new_id
from app.platform.paging import Part, list_rows
from app.tables import Checkpoint, Job, State
from core.schema.events import Saved


def add_checkpoint(session: Session, job_id: str, attempt: int, saved: Saved | State, *, key: str) -> Checkpoint:
    """Write the row of a checkpoint whose file the object store has already."""
    checkpoint = Checkpoint(
        id=new_id("ckpt"),
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
    where = [Checkpoint.job_id == job_id]
    return list_rows(session, Checkpoint, Checkpoint.id, where, after=after, limit=limit, order="asc")


def find_checkpoint(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """Find a checkpoint of this project's jobs."""
    owned = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(Job.project_id == project_id)
    return session.scalars(owned.where(Checkpoint.id == checkpoint_id)).one_or_none()
