"""What a run reports while its worker owns it: events, the curve, files and logs. Each raises LeaseLost.

A file is real because its row is: what lies in the object store without one is garbage of a lost attempt.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.orm import Session

from app.jobs.leases import Claim, append, change, only, owned
from app.platform.ids import new_id
from app.schemas import Progress, Result
from app.tables import Attempt, Checkpoint, Job, Metric, State
from core.schema import events as reported

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
    attack_norm=None,
    attacks_done=0,
    attacks_total=0,
    fraction=None,
    seconds_remaining=None,
)


def record(session: Session, claim: Claim, events: Sequence[reported.Event]) -> None:
    """Store what the run has reported, in one go. Saved files are `save`'s."""
    # The job's row before its attempt's, as everywhere: two that go the other way would wait for each other.
    shown = select(Job.progress, Job.results, Job.phase, Job.stopped_early).where(*owned(claim)).with_for_update()
    so_far, results, phase, stopped_early = only(claim, session.execute(shown).all())
    progress = Progress.model_validate(so_far) if so_far else NO_PROGRESS
    results = dict(results or {"before": None, "after": None})
    steps = [_metric(claim, event) for event in events if isinstance(event, reported.Stepped)]
    for event in events:
        progress = _advance(progress, event)
        match event:
            case reported.Started():
                _note(session, claim, device=event.device)
            case reported.Resumed():
                _note(session, claim, resumed_step=event.step)
            case reported.Entered():
                phase = event.phase
            case reported.Evaluated():
                result = Result.of(event.report).model_dump(mode="json")
                results["before" if event.subject == "base" else "after"] = result
            case reported.Warned(code="stopped_early"):
                stopped_early = True
    if steps:
        session.execute(insert(Metric), steps)
    entries = [_entry(event) for event in events if not isinstance(event, reported.Stepped | reported.Saved)]
    changed = change(
        session,
        *owned(claim),
        events=len(entries),
        phase=phase,
        stopped_early=stopped_early,
        progress=progress.model_dump(mode="json"),
        results=results if any(results.values()) else None,
    )
    append(session, only(claim, changed), entries)


def save(session: Session, claim: Claim, saved: reported.Saved, *, key: str) -> None:
    """Make a file real that already lies in the object store."""
    details = saved.model_dump(mode="json", exclude={"type", "path"})
    if saved.kind == "report":
        values = {"report_key": key, "report_sha256": saved.sha256}
    else:
        checkpoint = Checkpoint(
            id=new_id("ckpt"),
            job_id=claim.job_id,
            attempt=claim.attempt,
            step=saved.step,
            epoch=saved.epoch,
            key=key,
            size=saved.size,
            sha256=saved.sha256,
        )
        session.add(checkpoint)
        details["checkpoint"] = checkpoint.id
        values = {"checkpoint_id": checkpoint.id}
    append(session, only(claim, change(session, *owned(claim), events=1, **values)), [("saved", details)])


def save_state(session: Session, claim: Claim, saved: reported.Saved, *, name: str, key: str) -> Sequence[str]:
    """Let the job's next attempt begin with a file that already lies in the object store; give the keys of those that
    are no longer needed."""
    details = saved.model_dump(mode="json", exclude={"type", "path"})
    job = only(claim, change(session, *owned(claim), events=1))
    append(session, job, [("saved", details)])
    before = _states(session, claim.job_id)
    if saved.kind == "verdicts":
        if saved.step > max((state.step for state in before if state.kind == "verdicts"), default=0):
            session.execute(update(Job).where(*owned(claim)).values(crashes_in_place=0))
    elif saved.step > job.saved_step:
        further = update(Job).where(*owned(claim))
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
    outdated = [state for state in _states(session, claim.job_id) if state.kind == saved.kind][STATES_KEPT:]
    if saved.kind == "state":
        # Whatever evaluation they were of, the training has gone on since.
        outdated += [state for state in before if state.kind == "verdicts"]
    for state in outdated:
        session.delete(state)
    return [state.key for state in outdated]


def states(session: Session, claim: Claim) -> Sequence[State]:
    """List the files that this attempt can begin with, of each kind the newest first: the job's own, else those of the
    job that it is a retry of."""
    found: list[State] = []
    job_id: str | None = claim.job_id
    # A retry may have gone on with an evaluation, but not yet with the training.
    while job_id and all(state.kind == "verdicts" for state in found):
        found += _states(session, job_id)
        job_id = session.scalar(select(Job.retry_of).where(Job.id == job_id))
    return found


def forget_states(session: Session, claim: Claim) -> Sequence[str]:
    """Let go of the states of a job that has succeeded, and of its shards; give the keys of their files. Those of a
    shard stay until its whole has succeeded: should that fail, a retry has little to find out again."""
    if claim.shard or session.scalar(select(Job.status).where(Job.id == claim.job_id)) != "succeeded":
        return []
    its_own = State.job_id.in_(select(Job.id).where(or_(Job.id == claim.job_id, Job.parent_id == claim.job_id)))
    keys = session.scalars(select(State.key).where(its_own)).all()
    session.execute(delete(State).where(its_own))
    return keys


def published(session: Session, claim: Claim) -> tuple[str, str] | None:
    """Find the report, as key and sha256, of an earlier attempt that was lost after it had delivered all its files."""
    job = session.scalars(select(Job).where(*owned(claim))).one_or_none()
    if job is None or job.report_key is None or job.report_sha256 is None:
        return None
    return job.report_key, job.report_sha256


def reports_of_shards(session: Session, claim: Claim) -> Sequence[tuple[str, str]]:
    """List the reports that a job's shards have delivered, by their number, as key and sha256."""
    of_shards = select(Job).where(Job.parent_id == claim.job_id, Job.status == "succeeded").order_by(Job.shard)
    found = [(shard.report_key, shard.report_sha256) for shard in session.scalars(of_shards).all()]
    return [(key, sha256) for key, sha256 in found if key and sha256]


def add_log(session: Session, claim: Claim, *, size: int) -> None:
    """Count one more part of the attempt's log, of so many bytes, that already lies in the object store."""
    only(claim, session.scalars(select(Job.id).where(*owned(claim)).with_for_update()).all())
    _note(session, claim, log_parts=Attempt.log_parts + 1, log_size=Attempt.log_size + size)


def writes(session: Session, claim: Claim) -> int:
    """Count the changes that the attempt's worker has committed, also after the end of the attempt. One whose
    transaction is still open is waited for."""
    session.execute(select(Job.id).where(Job.id == claim.job_id).with_for_update())
    found = select(Attempt.writes).where(Attempt.job_id == claim.job_id, Attempt.attempt == claim.attempt)
    return session.scalar(found) or 0


def count_write(session: Session, claim: Claim, number: int) -> None:
    """Count the change that this transaction makes, as the last thing in it."""
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
            change = {"subject": event.subject, "attack": None, "attack_norm": None, "fraction": None}
            change |= {"attacks_done": 0, "attacks_total": 0, "seconds_remaining": None}
        case reported.Stepped():
            change = event.model_dump(exclude={"type", "seconds", "counts"})
            change["counts"] = event.counts
            change["fraction"] = event.step / event.total_steps
            change["seconds_remaining"] = event.seconds / event.step * (event.total_steps - event.step)
        case reported.Attacked():
            change = {"subject": event.subject, "attack": event.attack, "attack_norm": event.norm}
            change |= {"attacks_done": event.done, "attacks_total": event.total, "fraction": event.done / event.total}
        case _:
            return progress
    return progress.model_copy(update=change)
