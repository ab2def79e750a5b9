"""The life of a job: create, claim, heartbeat, record, save, end, cancel. No HTTP in it.

    queued -> running -> succeeded | failed             running -> queued (worker lost or stopped)
    running -> pausing -> paused -> queued              running -> stopping -> succeeded
    queued | running | paused -> cancelling -> cancelled

Every change of status goes through `MOVES`, in one UPDATE that also appends to the job's history. A worker owns a job
by its epoch, under a lease in the database's own time: a write under an older epoch changes nothing and raises
LostOwnership. The caller opens the transaction and commits it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.database import now, seconds_from_now
from app.schemas import Action, Failure, Progress, Status
from app.tables import Attempt, Checkpoint, Event, Job, Metric, State, new_id
from core import events as reported
from core.advice import cautions
from core.spec import AnySpec, parse

Row = TypeVar("Row")

MOVES: Mapping[Status, frozenset[Status]] = {
    #: Waits for a worker.
    "queued": frozenset({"running", "cancelling"}),
    #: A worker has it.
    "running": frozenset({"queued", "pausing", "stopping", "cancelling", "succeeded", "failed"}),
    #: Its worker was asked to put it aside.
    "pausing": frozenset({"paused", "failed"}),
    #: Waits for somebody to resume it.
    "paused": frozenset({"queued", "cancelling"}),
    #: Its worker was asked to deliver what there is.
    "stopping": frozenset({"succeeded", "failed"}),
    #: Its worker was asked to give up.
    "cancelling": frozenset({"cancelled"}),
    #: All files are there.
    "succeeded": frozenset(),
    #: `failure` says why.
    "failed": frozenset(),
    #: Somebody asked for it.
    "cancelled": frozenset(),
}
TERMINAL = frozenset(status for status, targets in MOVES.items() if not targets)
HELD: frozenset[Status] = frozenset({"running", "pausing", "stopping", "cancelling"})
"""A worker has the job, under a lease."""
GPUS = func.coalesce(Job.spec["gpus"].as_integer(), 1)
"""How many GPUs a job asks for. An evaluation names no number: it takes one."""
ACTIONS: Mapping[Action, Status] = {"cancel": "cancelling"}

_WORKER_LOST = Failure(
    code="worker_lost",
    message="The job's worker vanished too often.",
    hint="See whether the worker's machine runs out of memory or is being restarted, then post the job again.",
    field=None,
    retryable=True,
)
_REPEATED_CRASH = Failure(
    code="repeated_crash",
    message="The training process was killed too often, most likely because the machine ran out of memory.",
    hint="Lower batch_size and evaluation.batch_size, or give the worker more memory, then post the job again.",
    field=None,
    retryable=False,
)
_NO_PROGRESS = Progress(
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


class LostOwnership(Exception):
    """Another worker has the job by now, or it has ended: whoever asked must stop at once."""


class NotAllowed(Exception):
    """The job's status does not allow the action."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class KeyReused(Exception):
    """The idempotency key belongs to a job with a different spec."""


@dataclass(frozen=True)
class Created:
    """A job, and whether it was there already."""

    job: Job
    replayed: bool


@dataclass(frozen=True)
class Claim:
    """One worker's hold on a job."""

    job_id: str
    epoch: int
    spec: AnySpec

    @property
    def prefix(self) -> str:
        """Where this attempt's files go in the object store; nobody else writes there."""
        return f"jobs/{self.job_id}/attempts/{self.epoch}"


def allowed_actions(status: Status) -> list[Action]:
    """Say what may be asked of a job."""
    return [action for action, target in ACTIONS.items() if target in MOVES[status]]


def create(session: Session, project_id: str, spec: AnySpec, *, idempotency_key: str | None = None) -> Created:
    """Queue a job, or find the one that this key has queued before. Raises KeyReused where that has another spec."""
    body = spec.model_dump_json()
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        idempotency_key=idempotency_key,
        fingerprint=hashlib.sha256(body.encode()).hexdigest(),
        kind=spec.kind,
        name=spec.name,
        base_model=getattr(spec, "base_model", None),
        dataset=spec.dataset,
        priority=spec.priority,
        spec=spec.model_dump(mode="json"),
        cautions=[caution.model_dump() for caution in cautions(spec)],
        labels=dict(spec.metadata),
        event_seq=1,
    )
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:
        return Created(_same_request(session, job), replayed=True)
    _append(session, job, [("job.created", {})])
    return Created(job, replayed=False)


def _same_request(session: Session, job: Job) -> Job:
    same_key = Job.project_id == job.project_id, Job.idempotency_key == job.idempotency_key
    first = session.scalars(select(Job).where(*same_key)).one()
    if first.fingerprint != job.fingerprint:
        raise KeyReused
    return first


def claim(
    session: Session, *, worker: str, lease_seconds: float, max_losses: int, gpus: int | None = None
) -> Claim | None:
    """Take the next waiting job, those of lost workers included; None when nothing waits that asks for as many GPUs at
    most."""
    expire(session, max_losses=max_losses)
    waiting = select(Job.id).where(Job.status == "queued").order_by(Job.priority.desc(), Job.id).limit(1)
    if gpus is not None:
        waiting = waiting.where(gpus >= GPUS)
    claimed = _move(
        session,
        "running",
        Job.id == waiting.with_for_update(skip_locked=True).scalar_subquery(),
        event="job.claimed",
        details={"worker": worker},
        epoch=Job.epoch + 1,
        owner=worker,
        lease_until=seconds_from_now(lease_seconds),
        started_at=now(),
        phase="preparing",
        progress=None,
        results=None,
    )
    if not claimed:
        return None
    job = claimed[0]
    session.add(Attempt(job_id=job.id, epoch=job.epoch, worker=worker))
    return Claim(job.id, job.epoch, parse(job.spec))


def gpus_wanted(session: Session, *, seconds: float) -> Sequence[int]:
    """Say what numbers of GPUs the jobs ask for that have waited for longer than so many seconds."""
    for_long = Job.status == "queued", Job.updated_at < seconds_from_now(-seconds)
    return session.scalars(select(GPUS).where(*for_long).distinct()).all()


def expire(session: Session, *, max_losses: int) -> None:
    """Take back the jobs whose lease has run out. Any process may do this at any time."""
    expired = Job.lease_until < now()
    _leave(session, "cancelled", expired, Job.status == "cancelling")
    _lose(session, expired, failure=_WORKER_LOST, max_losses=max_losses)


def heartbeat(session: Session, claim: Claim, *, lease_seconds: float) -> Status:
    """Renew the lease; the status says what is asked of the worker. Raises LostOwnership."""
    renewed = (
        update(Job).where(*_owned(claim)).values(lease_until=seconds_from_now(lease_seconds)).returning(Job.status)
    )
    return _one(claim, session.scalars(renewed).all())


def look(session: Session, claim: Claim) -> Status:
    """Read what is asked of the worker. Raises LostOwnership."""
    return _one(claim, session.scalars(select(Job.status).where(*_owned(claim))).all())


def record(session: Session, claim: Claim, events: Sequence[reported.Event]) -> None:
    """Store what the run has reported, in one go. Saved files are `save`'s. Raises LostOwnership."""
    job = _one(claim, session.scalars(select(Job).where(*_owned(claim))).all())
    progress = Progress.model_validate(job.progress) if job.progress else _NO_PROGRESS
    results = dict(job.results or {"before": None, "after": None})
    phase = job.phase
    for event in events:
        progress = _advance(progress, event)
        match event:
            case reported.Entered():
                phase = event.phase
            case reported.Evaluated():
                results["before" if event.subject == "base" else "after"] = _numbers(event.report)
            case reported.Stepped():
                session.add(_metric(claim, event))
    entries = [_entry(event) for event in events if not isinstance(event, reported.Stepped | reported.Saved)]
    (job,) = _update(
        session,
        Job.id == claim.job_id,
        events=len(entries),
        phase=phase,
        progress=progress.model_dump(mode="json"),
        results=results if any(results.values()) else None,
    )
    _append(session, job, entries)


def save(session: Session, claim: Claim, saved: reported.Saved, *, key: str) -> None:
    """Make a file real that already lies in the object store. Raises LostOwnership."""
    details = saved.model_dump(mode="json", exclude={"type", "path"})
    if saved.kind == "report":
        values = {"report_key": key}
    else:
        checkpoint = Checkpoint(
            id=new_id("ckpt"),
            job_id=claim.job_id,
            epoch=claim.epoch,
            step=saved.step,
            progress=saved.epoch,
            key=key,
            size=saved.size,
            sha256=saved.sha256,
        )
        session.add(checkpoint)
        details["checkpoint"] = checkpoint.id
        values = {"checkpoint_id": checkpoint.id}
    job = _one(claim, _update(session, *_owned(claim), events=1, **values))
    _append(session, job, [("saved", details)])


def save_state(session: Session, claim: Claim, saved: reported.Saved, *, name: str, key: str) -> str | None:
    """Let the job's next attempt begin with a file that already lies in the object store; give the key of the one whose
    place it takes. Raises LostOwnership."""
    details = saved.model_dump(mode="json", exclude={"type", "path"})
    job = _one(claim, _update(session, *_owned(claim), events=1))
    _append(session, job, [("saved", details)])
    before = session.get(State, (claim.job_id, saved.kind))
    superseded = before.key if before else None
    values = {"epoch": claim.epoch, "step": saved.step, "name": name, "key": key, "sha256": saved.sha256}
    session.merge(State(job_id=claim.job_id, kind=saved.kind, **values))
    return superseded


def states(session: Session, claim: Claim) -> Sequence[State]:
    """List the files that this attempt begins with."""
    return session.scalars(select(State).where(State.job_id == claim.job_id)).all()


def forget_states(session: Session, claim: Claim) -> bool:
    """Let go of the job's states when no attempt will need them any more, and nobody; say whether that is so."""
    done = session.scalars(select(Job.status).where(Job.id == claim.job_id)).one() in ("succeeded", "cancelled")
    if done:
        session.execute(delete(State).where(State.job_id == claim.job_id))
    return done


def succeed(session: Session, claim: Claim, reports: reported.Reports) -> None:
    """End the job well. One that is being cancelled ends cancelled all the same. Raises LostOwnership."""
    results = {
        "before": reports.before and _numbers(reports.before),
        "after": reports.after and _numbers(reports.after),
    }
    _end(session, claim, "succeeded", results=results)


def fail(session: Session, claim: Claim, failure: Failure) -> None:
    """End the job badly. One that is being cancelled ends cancelled all the same. Raises LostOwnership."""
    content = failure.model_dump()
    _end(session, claim, "failed", details={"failure": content}, failure=content)


def hand_back(session: Session, claim: Claim) -> None:
    """Let another worker have the job, to go on from its last state; this is no loss. Raises LostOwnership."""
    _end(session, claim, "queued", event="job.handed_back", outcome="handed_back")


def lose(session: Session, claim: Claim, *, max_losses: int) -> None:
    """Note that the training process was killed from outside, and let the job start again. Raises LostOwnership."""
    _hold(session, claim)
    if _cancelled(session, claim):
        return
    _one(claim, _lose(session, *_owned(claim), failure=_REPEATED_CRASH, max_losses=max_losses))


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancel a waiting job, or ask the worker of a running one to give up. Raises NotAllowed."""
    job = session.get_one(Job, job_id, with_for_update=True)
    if job.status in ("cancelling", "cancelled"):
        return job
    if "cancelling" not in MOVES[job.status]:
        raise NotAllowed(job.status)
    nobody_has_it = job.status not in HELD
    _move(session, "cancelling", Job.id == job_id)
    if nobody_has_it:
        _leave(session, "cancelled", Job.id == job_id)
    return job


def _end(session: Session, claim: Claim, to: Status, **values: Any) -> None:
    _hold(session, claim)
    if not _cancelled(session, claim):
        _one(claim, _leave(session, to, *_owned(claim), **values))


def _hold(session: Session, claim: Claim) -> None:
    """Keep others from changing the job until this transaction ends. Raises LostOwnership."""
    _one(claim, session.scalars(select(Job.id).where(*_owned(claim)).with_for_update()).all())


def _cancelled(session: Session, claim: Claim) -> bool:
    return bool(_leave(session, "cancelled", *_owned(claim), Job.status == "cancelling"))


def _lose(session: Session, *where: ColumnElement[bool], failure: Failure, max_losses: int) -> Sequence[Job]:
    """Queue the running jobs again, or fail those that have been lost once too often."""
    content = failure.model_dump()
    losses = Job.infra_losses + 1
    where = (*where, Job.status == "running")
    failed = _leave(
        session,
        "failed",
        *where,
        losses >= max_losses,
        details={"failure": content},
        failure=content,
        infra_losses=losses,
    )
    queued = _leave(session, "queued", *where, event="job.recovered", outcome="lost", infra_losses=losses)
    return [*failed, *queued]


def _leave(
    session: Session, to: Status, *where: ColumnElement[bool], outcome: str | None = None, **values: Any
) -> Sequence[Job]:
    """Move jobs out of their workers' hands."""
    if to in TERMINAL:
        values["finished_at"] = now()
    jobs = _move(session, to, *where, lease_until=None, phase=None, **values)
    for job in jobs:
        attempt = update(Attempt).where(Attempt.job_id == job.id, Attempt.epoch == job.epoch)
        session.execute(attempt.values(ended_at=now(), outcome=outcome or to))
    return jobs


def _move(
    session: Session,
    to: Status,
    *where: ColumnElement[bool],
    event: str | None = None,
    details: Mapping[str, Any] | None = None,
    **values: Any,
) -> Sequence[Job]:
    """Change the status of the jobs that may make this move, and say so in their history."""
    sources = [status for status, targets in MOVES.items() if to in targets]
    jobs = _update(session, *where, Job.status.in_(sources), events=1, status=to, **values)
    for job in jobs:
        _append(session, job, [(event or f"job.{to}", {"attempt": job.epoch, **(details or {})})])
    return jobs


def _update(session: Session, *where: ColumnElement[bool], events: int, **values: Any) -> Sequence[Job]:
    """Change rows, make it visible, and reserve places in their history."""
    changed = {"version": Job.version + 1, "updated_at": now(), "event_seq": Job.event_seq + events, **values}
    statement = update(Job).where(*where).values(changed).returning(Job)
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement, execution_options=options).all()


def _append(session: Session, job: Job, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    first = job.event_seq - len(entries) + 1
    for seq, (kind, data) in enumerate(entries, start=first):
        session.add(Event(job_id=job.id, seq=seq, type=kind, data=data))


def _owned(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return Job.id == claim.job_id, Job.epoch == claim.epoch, Job.status.in_(HELD)


def _one(claim: Claim, rows: Sequence[Row]) -> Row:
    if not rows:
        raise LostOwnership(claim.job_id)
    return rows[0]


def _entry(event: reported.Event) -> tuple[str, dict[str, Any]]:
    """The history leaves out what is long: the verdict on every single point is in the report."""
    verdicts = {"verdicts": True}
    long: dict[str, Any] = {"type": True, "report": verdicts, "reports": {"before": verdicts, "after": verdicts}}
    return event.type, event.model_dump(mode="json", exclude=long)


def _numbers(report: reported.Report) -> dict[str, Any]:
    return report.model_dump(mode="json", include={"clean", "robust", "union"})


def _metric(claim: Claim, event: reported.Stepped) -> Metric:
    return Metric(
        job_id=claim.job_id,
        epoch=claim.epoch,
        step=event.step,
        progress=event.epoch,
        loss=event.loss,
        learning_rate=event.learning_rate,
        norm=event.norm,
        counts={norm: count.model_dump() for norm, count in event.counts.items()},
    )


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
