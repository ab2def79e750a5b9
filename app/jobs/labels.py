"""The metadata of jobs as rows, by which the list of jobs finds them."""

import hashlib

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.tables import Job, JobLabel


def write(session: Session, job: Job) -> None:
    """Write the rows of a new job."""
    rows = _rows(job.project_id, job.id, job.labels)
    if rows:
        session.execute(insert(JobLabel), rows)


def write_all(session: Session) -> None:
    """Write the rows of all jobs, none of which has any."""
    jobs = select(Job.project_id, Job.id, Job.labels).where(Job.parent_id.is_(None)).execution_options(yield_per=1000)
    for some in session.execute(jobs).partitions():
        rows = [row for job in some for row in _rows(*job)]
        if rows:
            session.execute(insert(JobLabel), rows)


def digest(key: str, value: str) -> str:
    """Name a pair: a value may be longer than an index takes."""
    return hashlib.sha256(f"{key}={value}".encode()).hexdigest()


def _rows(project_id: str, job_id: str, labels: dict[str, str]) -> list[dict[str, str]]:
    return [{"project_id": project_id, "digest": digest(*pair), "job_id": job_id} for pair in labels.items()]
