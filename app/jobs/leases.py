"""A worker's claim of a job, and where the files of its attempt lie in the object store.

The lease is that of `app.platform.leases`: a write under an earlier attempt changes nothing and raises LeaseLost.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from app.platform import leases
from app.platform.leases import LeaseLost as LeaseLost
from app.platform.leases import require as require
from app.tables import Job
from core.schema.spec import AnySpec


@dataclass(frozen=True)
class Shard:
    """The part of an evaluation that a job is."""

    of: str
    """The job that was posted."""
    number: int
    """From 1."""
    count: int


@dataclass(frozen=True)
class Claim:
    """One worker's claim of a job."""

    job_id: str
    attempt: int
    spec: AnySpec
    shard: Shard | None = None
    """The part to evaluate; None for the whole job."""
    merges: int = 0
    """The number of shards whose reports are to be merged, where that is all that is left to do; else 0."""

    @property
    def prefix(self) -> str:
        """The folder of this attempt's files in the object store. No other attempt writes there."""
        return attempt_prefix(self.job_id, self.attempt)

    @property
    def root_job_id(self) -> str:
        """The job that was posted: this one, or the one that it is a shard of."""
        return self.shard.of if self.shard else self.job_id


def job_prefix(job_id: str) -> str:
    """Name the folder of a job's files in the object store."""
    return f"jobs/{job_id}"


def attempt_prefix(job_id: str, attempt: int) -> str:
    """Name the folder of an attempt's files in the object store."""
    return f"{job_prefix(job_id)}/attempts/{attempt}"


def log_key(job_id: str, attempt: int, part: int) -> str:
    """Name a part of an attempt's log in the object store; parts count from 1."""
    return f"{attempt_prefix(job_id, attempt)}/logs/{part:06}.log"


def fence(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The condition under which the claim still holds the job."""
    return leases.fence(Job, claim.job_id, claim.attempt)


def lock_job(session: Session, claim: Claim) -> Job:
    """Read the claimed job, and keep others from changing it until the transaction ends. Raises LeaseLost."""
    return leases.lock(session, Job, claim.job_id, claim.attempt)
