"""The metadata of jobs as rows, by which the list of jobs finds them."""

import hashlib

from sqlalchemy import insert
from sqlalchemy.orm import Session

from app.tables import Job, JobLabel


def write(session: Session, job: Job) -> None:
    """Write the rows of a new job."""
    rows = [{"project_id": job.project_id, "digest": digest(*pair), "job_id": job.id} for pair in job.labels.items()]
    if rows:
        session.execute(insert(JobLabel), rows)


def digest(key: str, value: str) -> str:
    """Name a pair: a value may be longer than an index takes."""
    return hashlib.sha256(f"{key}={value}".encode()).hexdigest()
