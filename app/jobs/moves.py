"""The status of a job: the table of allowed moves, and the statements that make them.

    queued -> running -> succeeded | failed
    running -> pausing -> paused -> queued
    running -> stopping
    pausing | stopping -> succeeded | failed   (the run may end before its worker pauses it)
    queued | running | pausing | paused | stopping -> cancelling -> cancelled
    running | stopping -> queued               (the lease has expired, or the worker handed the job back)
    queued -> paused                           (a shard, with its parent)

Each change of status is one UPDATE that also appends to the job's history and queues webhook deliveries. A terminal
status is final: the database itself refuses to change it, and a retry is another job that continues this one. The
caller opens the transaction and commits it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from app.assets.checkpoints import add_checkpoint
from app.jobs import estimates
from app.jobs.failures import CrashCode
from app.jobs.history import append_events, change_jobs
from app.platform import leases
from app.platform.database import now, seconds_from_now
from app.projects import totals
from app.schemas import Failure, Outcome, Status
from app.tables import Attempt, Job, State
from app.webhooks import deliveries

MOVES: Mapping[Status, frozenset[Status]] = {
    #: Waits for a worker. Only a shard can be paused from here, when its parent is.
    "queued": frozenset({"running", "paused", "cancelling"}),
    #: A worker runs it.
    "running": frozenset({"queued", "pausing", "stopping", "cancelling", "succeeded", "failed"}),
    #: Its worker was asked to pause it. The run may end before the worker learns of that.
    "pausing": frozenset({"paused", "cancelling", "succeeded", "failed"}),
    #: Waits for a resume.
    "paused": frozenset({"queued", "cancelling"}),
    #: Its worker was asked to stop early and deliver the best weights so far.
    "stopping": frozenset({"queued", "cancelling", "succeeded", "failed"}),
    #: Its worker was asked to give up.
    "cancelling": frozenset({"cancelled"}),
    #: All its files are stored.
    "succeeded": frozenset(),
    #: `failure` says why.
    "failed": frozenset(),
    #: As requested.
    "cancelled": frozenset(),
}
HISTORY_DAYS = 365
"""Days after the end of a job for which its events and its curve are kept. The job, its report and its files stay."""
TERMINAL: frozenset[Status] = frozenset(status for status, targets in MOVES.items() if not targets)


def move(
    session: Session,
    to: Status,
    *where: ColumnElement[bool],
    event: str | None = None,
    details: Mapping[str, Any] | None = None,
    **values: Any,
) -> Sequence[Job]:
    """Change the status of the jobs that may make this move, with an event each; return them as they are then.

    event: the type of that event, by default `job.<status>`. details: its data beside the attempt. values: further
    columns to set.
    """
    sources = [status for status, targets in MOVES.items() if to in targets]
    jobs = change_jobs(session, *where, Job.status.in_(sources), events=1, status=to, **values)
    for job in jobs:
        append_events(session, job, [(event or f"job.{to}", {"attempt": job.attempt, **(details or {})})])
        deliveries.queue(session, job)
    return jobs


def leave(
    session: Session,
    job: Job,
    to: Status,
    *,
    outcome: Outcome | None = None,
    cause_code: str | None = None,
    cause: str | None = None,
    **values: Any,
) -> Job:
    """End the lease of a job and its attempt, and move the job.

    outcome: that of the attempt, by default the status that the job gets.
    """
    if to in TERMINAL:
        values["finished_at"] = now()
        values["history_ends_at"] = seconds_from_now(HISTORY_DAYS * 24 * 3600)
        values["actual"] = estimates.measure(session, job.id).model_dump()
    if to in ("failed", "cancelled"):
        _keep_best(session, job)
    (job,) = move(session, to, Job.id == job.id, phase=None, **leases.RELEASED, **values)
    if to in TERMINAL:
        totals.count_job(session, job)
    latest = Attempt.job_id == job.id, Attempt.attempt == job.attempt
    attempt = update(Attempt).where(*latest, Attempt.ended_at.is_(None))
    ended = attempt.values(ended_at=now(), outcome=outcome or to, cause_code=cause_code, cause=cause)
    if session.scalars(ended.returning(Attempt.attempt)).all():
        totals.count_attempt(session, job)
        if to == "succeeded":
            estimates.keep_run(session, job)
    return job


def fail(
    session: Session,
    job: Job,
    failure: Failure,
    *,
    outcome: Outcome | None = None,
    cause_code: CrashCode | None = None,
    cause: str | None = None,
    **values: Any,
) -> Job:
    """Move a job to failed. The cause of the attempt's end is by default the failure itself."""
    content = failure.model_dump()
    return leave(
        session,
        job,
        "failed",
        outcome=outcome,
        cause_code=cause_code or failure.code,
        cause=cause or failure.message,
        details={"failure": content},
        failure=content,
        **values,
    )


def _keep_best(session: Session, job: Job) -> None:
    """Make the best weights of a run that delivers none its checkpoint."""
    of_job = State.job_id == job.id, State.kind == "best"
    best = session.scalars(select(State).where(*of_job).order_by(State.attempt.desc(), State.step.desc())).first()
    if best is None or job.checkpoint_id is not None:
        return
    checkpoint = add_checkpoint(session, job.id, best.attempt, best, key=best.key)
    (job,) = change_jobs(session, Job.id == job.id, events=1, checkpoint_id=checkpoint.id)
    saved = {"kind": "best", "sha256": best.sha256, "size": best.size, "step": best.step, "epoch": best.epoch}
    append_events(session, job, [("saved", {**saved, "checkpoint": checkpoint.id})])
