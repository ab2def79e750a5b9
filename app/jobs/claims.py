"""A worker's operations on jobs: claim the next one, renew its lease, end it, hand it back, or crash.

`app.jobs.ingest` stores what a run reports in between. The caller opens the transaction and commits it.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from random import random
from typing import Any, Self

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from app.jobs import failures, shards, waiting
from app.jobs.failures import CrashCode
from app.jobs.leases import Claim, Shard, fence, lock_job, require
from app.jobs.moves import fail as move_to_failed
from app.jobs.moves import leave, move
from app.jobs.requirements import Capacity, read_key
from app.platform import leases
from app.platform.database import now, seconds_from_now
from app.platform.settings import Settings
from app.projects import quotas
from app.schemas import Failure, Results, Status
from app.schemas.job_request import parse_request
from app.tables import AT_WORK, CLAIMED, Attempt, Job, Project
from core.schema.report import Reports

MAX_CRASHES_IN_PLACE = 3
"""Consecutive crashes without newly saved progress at which a job fails."""
CRASH_BACKOFF_SECONDS = 5.0
"""The wait after a job's first crash."""
MAX_CRASH_BACKOFF_SECONDS = 300.0
"""The longest wait after a crash."""
CANCEL_LIMIT_SECONDS = 45.0
"""Time after the request at which a job is cancelled even if its worker has not reacted."""

_CLAIMABLE = Job.status == "queued", Job.shards_left == 0, or_(Job.not_before.is_(None), Job.not_before <= now())
"""The condition under which a job can be claimed, by a worker that has what the job requires."""


@dataclass(frozen=True)
class RetryPolicy:
    """Limits on the crashes of a job, and the wait after each crash."""

    max_crashes: int
    """The job fails at this number of crashes."""
    max_crashes_in_place: int = MAX_CRASHES_IN_PLACE
    """The job fails at this number of consecutive crashes without newly saved progress."""
    backoff_seconds: float = CRASH_BACKOFF_SECONDS
    """The wait after the first crash. It doubles with each further crash."""
    max_backoff_seconds: float = MAX_CRASH_BACKOFF_SECONDS
    """The longest wait."""
    cancel_seconds: float = CANCEL_LIMIT_SECONDS
    """Time after the request at which a job is cancelled even if its worker has not reacted."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read from the settings at how many crashes a job fails; the constants are read when this is called."""
        return cls(
            max_crashes=settings.max_crashes,
            max_crashes_in_place=MAX_CRASHES_IN_PLACE,
            backoff_seconds=CRASH_BACKOFF_SECONDS,
            max_backoff_seconds=MAX_CRASH_BACKOFF_SECONDS,
            cancel_seconds=CANCEL_LIMIT_SECONDS,
        )


def claim(
    session: Session,
    *,
    worker: str,
    lease_seconds: float,
    retry_policy: RetryPolicy,
    capacity: Capacity | None = None,
    running_quota: int | None = None,
) -> Claim | None:
    """Claim the next waiting job, those of lost workers included.

    capacity: only a job that requires no more than this. running_quota: the limit of running jobs of a project that has
    no limit of its own. Returns None where no such job waits.
    """
    # In this order: an update of parents waits for the rows of their shards, and must not hold any rows that others
    # may wait for.
    shards.update_parents(session)
    expire(session, retry_policy)
    claimed: Sequence[Job] = []
    for project_id, requires in _groups_in_turn(session, capacity, running_quota):
        of_group = select(Job.id).where(Job.project_id == project_id, Job.requires == requires, *_CLAIMABLE)
        first = leases.next_of(Job, of_group.order_by(Job.priority.desc(), Job.id))
        with session.begin_nested() as savepoint:
            claimed = _take(session, first, worker=worker, lease_seconds=lease_seconds)
            if claimed and quotas.is_over(session, project_id, running_quota):
                # Another worker has used up the project's quota at the same moment.
                savepoint.rollback()
                claimed = []
        if claimed:
            break
    if not claimed:
        return None
    job = claimed[0]
    session.add(Attempt(job_id=job.id, attempt=job.attempt, worker=worker))
    if job.stop_requested:
        # The stop was requested from a worker that has since vanished; it applies to this attempt too.
        move(session, "stopping", Job.id == job.id)
    shard = Shard(job.parent_id, job.shard, job.shard_count) if job.parent_id and job.shard else None
    return Claim(job.id, job.attempt, parse_request(job.spec).spec, shard, merges=0 if shard else job.shard_count)


def _take(session: Session, first: ColumnElement[bool], *, worker: str, lease_seconds: float) -> Sequence[Job]:
    return move(
        session,
        "running",
        first,
        event="job.claimed",
        details={"worker": worker},
        not_before=None,
        started_at=now(),
        phase="preparing",
        progress=None,
        results=None,
        **leases.claimed(Job, owner=worker, seconds=lease_seconds),
    )


def _groups_in_turn(
    session: Session, capacity: Capacity | None, running_quota: int | None
) -> Sequence[tuple[str, str]]:
    """List the groups of jobs to claim, each a project and what its jobs require: the projects with the fewest running
    jobs first, equal ones at random, and of a project the group with the most urgent job first.

    So the many jobs of one project do not delay another project; priority orders the jobs within a project.
    """
    # One row is read for each group: reading all waiting jobs would be too much for each claim.
    # With a limit, so that no plan joins the two tables whole; in the order of the index, so that no plan scans the
    # table in search of a row, however outdated its statistics are.
    group = waiting.QUEUED_GROUPS.c
    first = select(Job.id).where(Job.project_id == group.project_id, Job.requires == group.requires, *_CLAIMABLE)
    first = first.order_by(Job.priority.desc(), Job.id).limit(1).correlate(waiting.QUEUED_GROUPS)
    urgency = first.with_only_columns(Job.priority).scalar_subquery()
    # Groups without a claimable job are dropped here: in SQL the subqueries would run twice.
    found = session.execute(select(group.project_id, group.requires, urgency, first.scalar_subquery())).all()
    groups = [row for row in found if row[3] and (capacity is None or capacity.meets(read_key(row[1])))]
    turns = _turns(session, {row[0] for row in groups}, running_quota) if groups else {}
    groups = sorted((row for row in groups if row[0] in turns), key=lambda row: (turns[row[0]], -row[2], row[3]))
    return [(row[0], row[1]) for row in groups]


def _turns(session: Session, project_ids: Set[str], running_quota: int | None) -> Mapping[str, tuple[int, float]]:
    """Tell which of these projects may have a job claimed, each with its place among them: the number of its running
    jobs, and among equal ones a random number."""
    running = select(Job.project_id, func.count().label("count")).where(*AT_WORK).group_by(Job.project_id).subquery()
    count = func.coalesce(running.c.count, 0)
    projects = select(Project.id, count).outerjoin(running, running.c.project_id == Project.id)
    projects = projects.where(Project.id.in_(project_ids), quotas.lets_run(count, running_quota))
    return {row[0]: (row[1], random()) for row in session.execute(projects)}


def heartbeat(session: Session, claim: Claim, *, lease_seconds: float) -> Status:
    """Extend the lease. The status says what is asked of the worker. Raises LeaseLost."""
    return leases.renew(session, Job.status, claim.job_id, claim.attempt, seconds=lease_seconds)


def read_status(session: Session, claim: Claim) -> Status:
    """Read the status, which says what is asked of the worker. Raises LeaseLost."""
    return require(session.scalars(select(Job.status).where(*fence(claim))).all(), claim.job_id)


def succeed(session: Session, claim: Claim, reports: Reports) -> None:
    """End the job as succeeded, or as cancelled where a cancel was requested. Raises LeaseLost."""
    job = lock_job(session, claim)
    if job.status == "cancelling":
        leave(session, job, "cancelled")
        return
    leave(session, job, "succeeded", results=Results.of(reports).model_dump(mode="json"))


def fail(session: Session, claim: Claim, failure: Failure) -> None:
    """End the job as failed, or as cancelled where a cancel was requested. Raises LeaseLost."""
    job = lock_job(session, claim)
    if job.status == "cancelling":
        leave(session, job, "cancelled")
    else:
        move_to_failed(session, job, failure)


def hand_back(session: Session, claim: Claim) -> None:
    """Pause or cancel the job where that was requested, else queue it to resume from its last state. This is not a
    crash. Raises LeaseLost."""
    job = lock_job(session, claim)
    match job.status:
        case "cancelling":
            leave(session, job, "cancelled")
        case "pausing":
            leave(session, job, "paused")
        case _:
            leave(session, job, "queued", event="job.handed_back", outcome="handed_back")


def record_crash(
    session: Session, claim: Claim, code: CrashCode, detail: str = "", *, retry_policy: RetryPolicy
) -> None:
    """Count a crash of the training process, and queue the job again. Raises LeaseLost.

    detail: what is known beyond the code, for people. A job that crashes with host_out_of_memory twice fails.
    """
    _after_crash(session, lock_job(session, claim), retry_policy, code, detail)


def expire(session: Session, retry_policy: RetryPolicy) -> None:
    """Take back the jobs whose lease has expired, and those whose worker does not react to a cancel. Any process may do
    this at any time."""
    expired = and_(Job.status.in_(CLAIMED), leases.has_expired(Job))
    long_ago = Job.asked_at < seconds_from_now(-retry_policy.cancel_seconds)
    ignored = and_(Job.status == "cancelling", Job.shards_left == 0, long_ago)
    # Whatever a worker holds has a lease, and an index of these alone.
    held = select(Job).where(Job.lease_until.is_not(None), or_(expired, ignored))
    # Shards of one job together: what ends an attempt at one waits for others that do (`totals.count_attempt`).
    for job in sorted(leases.lock_all(session, held, Job), key=lambda job: (job.parent_id or job.id, job.id)):
        _after_crash(session, job, retry_policy, "worker_lost")


def _after_crash(session: Session, job: Job, retry_policy: RetryPolicy, code: CrashCode, detail: str = "") -> None:
    """Move a locked job whose worker or training process has crashed: to what was requested, back into the queue, or to
    failed where it has crashed too often."""
    cause = failures.describe(code, detail)
    crashes, in_place = job.crashes + 1, job.crashes_in_place + 1
    lost: dict[str, Any] = {"outcome": "lost", "cause_code": code, "cause": cause}
    counted: dict[str, Any] = {"crashes": crashes, "crashes_in_place": in_place}
    if job.status == "cancelling":
        leave(session, job, "cancelled", **lost)
    elif job.status == "pausing":
        leave(session, job, "paused", **lost, **counted)
    elif code == "host_out_of_memory" and _has_crashed_by(session, job, code):
        move_to_failed(session, job, failures.out_of_memory(), **lost, **counted)
    elif in_place >= retry_policy.max_crashes_in_place:
        move_to_failed(session, job, failures.without_progress(cause, crashes=in_place), **lost, **counted)
    elif crashes >= retry_policy.max_crashes:
        move_to_failed(session, job, failures.after_crashes(code, cause, crashes=crashes), **lost, **counted)
    else:
        wait = min(retry_policy.backoff_seconds * 2 ** (crashes - 1), retry_policy.max_backoff_seconds)
        again: dict[str, Any] = {"event": "job.recovered", "details": {"code": code, "cause": cause}}
        leave(session, job, "queued", not_before=seconds_from_now(wait), **again, **lost, **counted)


def _has_crashed_by(session: Session, job: Job, code: CrashCode) -> bool:
    """Whether an earlier attempt at the job was lost for this reason."""
    same = Attempt.job_id == job.id, Attempt.attempt < job.attempt, Attempt.cause_code == code
    return session.scalar(select(Attempt.attempt).where(*same).limit(1)) is not None
