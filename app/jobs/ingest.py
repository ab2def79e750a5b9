"""Write what a run reports while its worker holds the job: events, the curve, files and logs.

Each function that writes raises LeaseLost where the claim no longer holds the job. A file counts once its row is
committed: an object without a row is garbage of a lost attempt.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import delete, insert, literal, select, update
from sqlalchemy.orm import Session

from app.assets.checkpoints import add_checkpoint
from app.jobs.history import append_events, change_jobs
from app.jobs.leases import Claim, fence, lock_job, require
from app.projects import totals
from app.schemas import Progress, Result
from app.tables import Attempt, Job, Metric, State
from core.schema import events as reported
from core.schema.progress import WarningRecord, add_warnings

_MOST_RETRIES_BACK = 10_000
"""Jobs in the chain that a retry continues, among which it looks for states."""
MOST_WARNINGS = 100
"""Warnings that a job shows, the latest."""
STATES_KEPT = 2
"""Of each kind, as the training process keeps them: where the newest one is damaged, the one before it is there."""
NO_PROGRESS = Progress(
    step=0,
    total_steps=0,
    epoch=0.0,
    loss=None,
    learning_rate=None,
    norm=None,
    counts={},
    subject=None,
    attack=None,
    threat=None,
    attacks_done=0,
    attacks_total=0,
    fraction=None,
    seconds_remaining=None,
)


def record(session: Session, claim: Claim, events: Sequence[reported.Event]) -> None:
    """Store events in one statement each for the job, its curve and its history. Saved files are written by `save`."""
    # The job's row before its attempt's, as everywhere: two transactions in opposite order would wait for each other.
    columns = Job.progress, Job.results, Job.phase, Job.stopped_early, Job.warnings
    shown = select(*columns).where(*fence(claim)).with_for_update()
    so_far, results, phase, stopped_early, warnings = require(session.execute(shown).all(), claim.job_id)
    progress = Progress.model_validate(so_far) if so_far else NO_PROGRESS
    results = dict(results or {"before": None, "after": None})
    steps = [_metric(claim, event) for event in events if isinstance(event, reported.Stepped)]
    for event in events:
        progress = _advance(progress, event)
        match event:
            case reported.Started():
                sizes = {"train_examples": event.train_examples, "test_examples": event.test_examples}
                _note(session, claim, device=event.device, **sizes)
            case reported.Resumed():
                _note(session, claim, resumed_step=event.step)
            case reported.Entered():
                phase = event.phase
            case reported.Evaluated():
                result = Result.of(event.report).model_dump(mode="json")
                results["before" if event.subject == "base" else "after"] = result
            case reported.Finished():
                _note(session, claim, working_seconds=event.seconds, peak_memory_bytes=event.peak_memory_bytes)
            case reported.Warned():
                known = [WarningRecord.model_validate(warning) for warning in warnings]
                warnings = [warning.model_dump() for warning in add_warnings(known, event)[-MOST_WARNINGS:]]
                stopped_early = stopped_early or event.code == reported.STOPPED_EARLY
    if steps:
        session.execute(insert(Metric), steps)
    entries = [_entry(event) for event in events if not isinstance(event, reported.Stepped | reported.Saved)]
    changed = change_jobs(
        session,
        *fence(claim),
        events=len(entries),
        phase=phase,
        stopped_early=stopped_early,
        warnings=warnings,
        progress=progress.model_dump(mode="json"),
        results=results if any(results.values()) else None,
    )
    append_events(session, require(changed, claim.job_id), entries)


def save(session: Session, claim: Claim, saved: reported.Saved, *, key: str) -> None:
    """Write the row of a checkpoint or report that the object store has already."""
    details = saved.model_dump(mode="json", exclude={"type", "path"})
    job = lock_job(session, claim)
    if saved.kind == "report":
        values = {"report_key": key, "report_sha256": saved.sha256}
    else:
        checkpoint = add_checkpoint(session, claim.job_id, claim.attempt, saved, key=key)
        totals.count_bytes(session, job.project_id, saved.size)
        details["checkpoint"] = checkpoint.id
        values = {"checkpoint_id": checkpoint.id}
    changed = change_jobs(session, *fence(claim), events=1, **values)
    append_events(session, require(changed, claim.job_id), [("saved", details)])


def save_state(session: Session, claim: Claim, saved: reported.Saved, *, name: str, key: str) -> Sequence[str]:
    """Write the row of a state that the object store has already, from which the next attempt can resume. Return the
    keys of the files that are no longer needed."""
    details = saved.model_dump(mode="json", exclude={"type", "path"})
    job = require(change_jobs(session, *fence(claim), events=1), claim.job_id)
    append_events(session, job, [("saved", details)])
    before = _states(session, claim.job_id)
    if saved.kind == "verdicts":
        if saved.step > max((state.step for state in before if state.kind == "verdicts"), default=0):
            session.execute(update(Job).where(*fence(claim)).values(crashes_in_place=0))
    elif saved.step > job.saved_step:
        further = update(Job).where(*fence(claim))
        session.execute(further.values(saved_step=saved.step, crashes_in_place=0))
    session.add(
        State(
            job_id=claim.job_id,
            kind=saved.kind,
            attempt=claim.attempt,
            step=saved.step,
            epoch=saved.epoch,
            name=name,
            key=key,
            size=saved.size,
            sha256=saved.sha256,
        )
    )
    session.flush()
    # A run that goes on has no checkpoint that is a state, too.
    totals.count_bytes(session, job.project_id, saved.size)
    outdated = [state for state in _states(session, claim.job_id) if state.kind == saved.kind][STATES_KEPT:]
    if saved.kind == "state":
        # They belong to an evaluation before this step of the training.
        outdated += [state for state in before if state.kind == "verdicts"]
    for state in outdated:
        session.delete(state)
    totals.count_bytes(session, job.project_id, -sum(state.size for state in outdated))
    return [state.key for state in outdated]


def states(session: Session, claim: Claim) -> Sequence[State]:
    """List the files that this attempt can resume from, of each kind the newest first: the job's own, else those of the
    job that it is a retry of."""
    chain = select(Job.id, Job.retry_of, literal(0).label("back")).where(Job.id == claim.job_id).cte(recursive=True)
    before = select(Job.id, Job.retry_of, chain.c.back + 1).join(chain, Job.id == chain.c.retry_of)
    chain = chain.union_all(before.where(chain.c.back < _MOST_RETRIES_BACK))
    newest_first = chain.c.back, State.attempt.desc(), State.step.desc()
    stored = select(State, chain.c.back).join(chain, State.job_id == chain.c.id).order_by(*newest_first)
    found: list[State] = []
    # A retry may have verdicts of its own before it has a state of the training.
    for _, of_job in groupby(session.execute(stored).all(), key=lambda row: row.back):
        found += [row.State for row in of_job]
        if any(state.kind != "verdicts" for state in found):
            break
    return found


def forget_states(session: Session, claim: Claim) -> Sequence[str]:
    """Delete the states of a succeeded job and of its shards, and return the keys of their files.

    The states of a shard stay until its parent has succeeded: should that fail, a retry resumes from them.
    """
    if claim.shard or session.scalar(select(Job.status).where(Job.id == claim.job_id)) != "succeeded":
        return []
    its_own = State.job_id.in_(totals.with_shards(session, [claim.job_id]))
    stored = session.execute(select(State.key, State.size).where(its_own)).all()
    session.execute(delete(State).where(its_own))
    project_id = session.scalars(select(Job.project_id).where(Job.id == claim.job_id)).one()
    totals.count_bytes(session, project_id, -sum(state.size for state in stored))
    return [state.key for state in stored]


def published(session: Session, claim: Claim) -> tuple[str, str] | None:
    """Find the report, as key and sha256, of an earlier attempt that was lost after it had stored all its files."""
    job = session.scalars(select(Job).where(*fence(claim))).one_or_none()
    if job is None or job.report_key is None or job.report_sha256 is None:
        return None
    return job.report_key, job.report_sha256


def reports_of_shards(session: Session, claim: Claim) -> Sequence[tuple[str, str]]:
    """List the reports of a job's shards by number, as key and sha256."""
    of_shards = select(Job).where(Job.parent_id == claim.job_id, Job.status == "succeeded").order_by(Job.shard)
    found = [(shard.report_key, shard.report_sha256) for shard in session.scalars(of_shards).all()]
    return [(key, sha256) for key, sha256 in found if key and sha256]


def add_log(session: Session, claim: Claim, *, size: int) -> None:
    """Record a part of the attempt's log, of `size` bytes, that is already in the object store."""
    job = lock_job(session, claim)
    totals.count_bytes(session, job.project_id, size)
    _note(session, claim, log_parts=Attempt.log_parts + 1, log_size=Attempt.log_size + size)


def writes(session: Session, claim: Claim) -> int:
    """Read the number of changes that the attempt's worker has committed, also after the end of the attempt. Waits for
    a transaction of that worker that is still open."""
    session.execute(select(Job.id).where(Job.id == claim.job_id).with_for_update())
    found = select(Attempt.writes).where(Attempt.job_id == claim.job_id, Attempt.attempt == claim.attempt)
    return session.scalar(found) or 0


def count_write(session: Session, claim: Claim, number: int) -> None:
    """Write the number of the change that this transaction makes, as its last statement."""
    session.flush()
    _note(session, claim, writes=number)


def _states(session: Session, job_id: str) -> Sequence[State]:
    newest_first = select(State).where(State.job_id == job_id).order_by(State.attempt.desc(), State.step.desc())
    return session.scalars(newest_first).all()


def _note(session: Session, claim: Claim, **values: Any) -> None:
    attempt = update(Attempt).where(Attempt.job_id == claim.job_id, Attempt.attempt == claim.attempt)
    session.execute(attempt.values(values))


def _entry(event: reported.Event) -> tuple[str, dict[str, Any]]:
    """The history leaves out what is long: what is known of every single point is in the report."""
    per_point = {"verdicts": True, "points": True}
    long: dict[str, Any] = {"type": True, "report": per_point, "reports": {"before": per_point, "after": per_point}}
    return event.type, event.model_dump(mode="json", exclude=long)


def _metric(claim: Claim, event: reported.Stepped) -> dict[str, Any]:
    return {
        "job_id": claim.job_id,
        "attempt": claim.attempt,
        "step": event.step,
        "epoch": event.epoch,
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "norm": event.norm,
        "counts": {norm: count.model_dump() for norm, count in event.counts.items()},
    }


def _advance(progress: Progress, event: reported.Event) -> Progress:
    match event:
        case reported.Started():
            change: dict[str, Any] = {"total_steps": event.total_steps}
        case reported.Entered():
            change = {"subject": event.subject, "attack": None, "threat": None, "fraction": None}
            change |= {"attacks_done": 0, "attacks_total": 0, "seconds_remaining": None}
        case reported.Stepped():
            change = event.model_dump(exclude={"type", "seconds", "counts"})
            change["counts"] = event.counts
            change["fraction"] = event.step / event.total_steps
            change["seconds_remaining"] = event.seconds / event.step * (event.total_steps - event.step)
        case reported.Attacked():
            change = {"subject": event.subject, "attack": event.attack, "threat": event.threat}
            change |= {"attacks_done": event.done, "attacks_total": event.total, "fraction": event.done / event.total}
        case _:
            return progress
    return progress.model_copy(update=change)
