"""Ids in the order in which their rows are committed, so that a follower of an ascending list misses none.

A reader who has seen an id asks for later ones only. So a row must not appear before one that was seen already, as it
would if two transactions took their ids in one order and committed in the other, or if their clocks differed.
A transaction takes its id under a lock that it holds until it ends, and the id is later than the latest one that was
given under that lock. The lock is that of the owner's row: the project, or the job for its checkpoints.
"""

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.platform.database import Deleted
from app.platform.ids import later_id
from app.tables import Checkpoint, Project


def next_id(session: Session, project_id: str, prefix: str) -> str:
    """Make the id of a new row of a project. Locks the project until the transaction ends: other inserts wait.

    Raises Deleted.

    Take it before the locks of other rows, except that of a job or a key, which go before it everywhere.
    """
    of_project = Project.id == project_id
    # Not a lock against references to the row: they are made all the time.
    lock = select(Project.latest_id, Project.deleted_at).where(of_project).with_for_update(key_share=True)
    row = session.execute(lock).one_or_none()
    if row is None or row.deleted_at:
        raise Deleted(f"there is no project {project_id!r} any more")
    made = later_id(prefix, row.latest_id)
    latest = update(Project).where(of_project).values(latest_id=made.partition("_")[2])
    session.execute(latest, execution_options={"synchronize_session": False})
    return made


def next_checkpoint_id(session: Session, job_id: str) -> str:
    """Make the id of a new checkpoint. The caller has locked the job."""
    latest = session.scalar(select(func.max(Checkpoint.id)).where(Checkpoint.job_id == job_id))
    return later_id("ckpt", (latest or "").partition("_")[2])


def next_project_id(session: Session) -> str:
    """Make the id of a new project. The caller keeps others from making one (`database.lock_out_others`)."""
    return later_id("prj", (session.scalar(select(func.max(Project.id))) or "").partition("_")[2])
