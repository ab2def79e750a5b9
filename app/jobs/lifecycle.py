"""The life of a job: create, claim, ask, crash, end. What a run reports in between is `app.jobs.ingest`. No HTTP in it.

    queued -> running -> succeeded | failed             running | stopping -> queued (worker lost or stopped)
    running -> pausing -> paused -> queued              running -> stopping -> succeeded
    queued | running | pausing | paused | stopping -> cancelling -> cancelled

A large evaluation is made in shards, each a job with this same life. As long as one of them is left, no worker can have
the job itself: it follows them (`settle`), and hands down what is asked of it. After that it is a job like any other,
queued for a worker that merges what they have found.

Every change of status goes through `MOVES`, in one UPDATE that also appends to the job's history; what people may ask
for is in `ACTIONS`. What ends, ends for good: the database itself refuses to change it, and a retry is another job that
goes on where this one was. The caller opens the transaction and commits it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.assets import assets
from app.jobs import estimates, shards
from app.jobs.leases import Claim, Shard, append, change, only, owned
from app.platform.database import hold, now, seconds_from_now
from app.platform.ids import new_id
from app.platform.settings import Settings
from app.projects import quotas, usage
from app.schemas import Action, Failure, Results, Status
from app.schemas.job_request import AnyRequest, parse_request
from app.tables import AT_WORK, HELD, Attempt, Checkpoint, Job, Project, State, Webhook
from app.webhooks import subscriptions
from core.schema.report import Reports
from core.schema.spec_warnings import spec_warnings

MOVES: Mapping[Status, frozenset[Status]] = {
    #: Waits for a worker. Only a shard is put aside from here, when its whole is.
    "queued": frozenset({"running", "paused", "cancelling"}),
    #: A worker has it.
    "running": frozenset({"queued", "pausing", "stopping", "cancelling", "succeeded", "failed"}),
    #: Its worker was asked to put it aside. It may be done before it hears of that.
    "pausing": frozenset({"paused", "cancelling", "succeeded", "failed"}),
    #: Waits for somebody to resume it.
    "paused": frozenset({"queued", "cancelling"}),
    #: Its worker was asked to deliver what there is.
    "stopping": frozenset({"queued", "cancelling", "succeeded", "failed"}),
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

OUT_OF_MEMORY = "the kernel has killed its training process: the worker's machine, or its container, is out of memory"
"""The cause of a crash that is no accident when it happens again."""


@dataclass(frozen=True)
class Rule:
    """When an action may be asked for."""

    allowed: frozenset[Status]
    """Where it changes something."""
    granted: frozenset[Status]
    """Where it has been done or is no longer needed, so that asking again changes nothing and is no error."""


ACTIONS: Mapping[Action, Rule] = {
    "pause": Rule(frozenset({"running"}), frozenset({"pausing", "paused"})),
    "resume": Rule(frozenset({"paused"}), frozenset({"queued", "running"})),
    "stop": Rule(frozenset({"running"}), frozenset({"stopping"})),
    "cancel": Rule(
        frozenset({"queued", "running", "pausing", "paused", "stopping"}), frozenset({"cancelling", "cancelled"})
    ),
    "retry": Rule(frozenset({"failed", "cancelled"}), frozenset()),
}


MAX_CRASHES_IN_PLACE = 3
CRASH_BACKOFF_SECONDS, MAX_CRASH_BACKOFF_SECONDS = 5.0, 300.0
CANCEL_LIMIT_SECONDS = 45.0
"""What an instance's `RetryPolicy` has beside its TEMPER_MAX_CRASHES."""


@dataclass(frozen=True)
class RetryPolicy:
    """How many crashes a job may have: of workers, and of training processes killed from outside."""

    max_crashes: int = 5
    """So many in all, and the job fails."""
    max_crashes_in_place: int = MAX_CRASHES_IN_PLACE
    """So many in a row without anything new saved, and the job fails."""
    backoff_seconds: float = CRASH_BACKOFF_SECONDS
    """How long a job waits after its first crash; after each further one twice as long."""
    max_backoff_seconds: float = MAX_CRASH_BACKOFF_SECONDS
    """The longest wait."""
    cancel_seconds: float = CANCEL_LIMIT_SECONDS
    """So long after a cancel the job is cancelled, whether its worker has heeded it or not."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read it off the settings."""
        return cls(
            max_crashes=settings.max_crashes,
            max_crashes_in_place=MAX_CRASHES_IN_PLACE,
            backoff_seconds=CRASH_BACKOFF_SECONDS,
            max_backoff_seconds=MAX_CRASH_BACKOFF_SECONDS,
            cancel_seconds=CANCEL_LIMIT_SECONDS,
        )


class NotAllowed(Exception):
    """The job's status does not allow the action."""

    def __init__(self, job: Job, action: Action | Literal["delete"]) -> None:
        super().__init__(action, job.status)
        self.action = action
        self.status = job.status
        self.allowed_actions = allowed_actions(job)


class KeyReused(Exception):
    """The idempotency key belongs to a job with a different spec."""


@dataclass(frozen=True)
class Created:
    """A job, and whether it was there already."""

    job: Job
    replayed: bool
    webhook: Webhook | None = None
    """The one that was made for the address which the spec names."""


def allowed_actions(job: Job) -> list[Action]:
    """Say what may be asked of a job; of a shard, nothing: what is asked of its whole reaches it."""
    if job.parent_id:
        return []
    # An evaluation has nothing to deliver before its end.
    never = {"stop"} if job.kind == "evaluate" else set()
    return [action for action, rule in ACTIONS.items() if job.status in rule.allowed and action not in never]


def create(
    session: Session,
    project_id: str,
    request: AnyRequest,
    *,
    idempotency_key: str | None = None,
    retry_of: str | None = None,
    cloned_from: str | None = None,
    most_webhooks: int = 0,
    in_shards: int = 0,
) -> Created:
    """Queue a job, or find the one that this key has queued before. Raises KeyReused where that has another spec.

    retry_of: the job where this one goes on, which has one retry at most. cloned_from: the job whose spec it varies.
    most_webhooks: how many the project may have, with the one that the spec may name. in_shards: how many workers can
    share it, 0 for one. Raises assets.Gone where what it takes in is no longer there, and subscriptions.TooMany.
    """
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        idempotency_key=idempotency_key,
        fingerprint=_fingerprint(request),
        kind=request.kind,
        name=request.name,
        base_model=getattr(request, "base_model", None),
        dataset=request.dataset,
        priority=request.priority,
        spec=request.model_dump(mode="json"),
        warnings=[caution.model_dump() for caution in spec_warnings(request)],
        estimate=estimates.predict(session, project_id, request).model_dump(),
        labels=dict(request.metadata),
        retry_of=retry_of,
        cloned_from=cloned_from,
        shard_count=in_shards,
        shards_left=in_shards,
        event_seq=1,
    )
    made = shards.make(job, shards.of(session, retry_of) if retry_of else [])
    job.shards = shards.show(made) or None
    if (first := _insert(session, job)) is not None:
        return Created(first, replayed=True)
    assets.link(session, job, request)
    lineage = {"retry_of": retry_of, "cloned_from": cloned_from}
    append(session, job, [("job.created", {name: value for name, value in lineage.items() if value})])
    if made:
        session.add_all(made)
        session.flush()
    for shard in made:
        append(session, shard, [("job.created", {"shard": shard.shard, "of": job.id})])
    webhook = None
    if request.webhook:
        webhook = subscriptions.enlist(session, project_id, request.webhook.url, limit=most_webhooks)
    subscriptions.announce(session, job)
    return Created(job, replayed=False, webhook=webhook)


def was_posted(session: Session, project_id: str, request: AnyRequest, idempotency_key: str) -> bool:
    """Whether this key has queued a job with this spec before."""
    same = Job.idempotency_key == idempotency_key, Job.fingerprint == _fingerprint(request)
    return session.scalar(select(Job.id).where(Job.project_id == project_id, *same)) is not None


def _fingerprint(request: AnyRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def _insert(session: Session, job: Job) -> Job | None:
    """Add a job, or find the one that the same request has made. Raises KeyReused."""
    for is_last in (False, True):
        try:
            with session.begin_nested():
                session.add(job)
        except IntegrityError:
            if first := _same_request(session, job):
                return first
            # Deleted between the two looks, it has made room for this one.
            if is_last:
                raise
        else:
            break
    return None


def _same_request(session: Session, job: Job) -> Job | None:
    if job.retry_of:
        return session.scalars(select(Job).where(Job.retry_of == job.retry_of)).one_or_none()
    same_key = Job.project_id == job.project_id, Job.idempotency_key == job.idempotency_key
    first = session.scalars(select(Job).where(*same_key)).one_or_none()
    if first and (first.fingerprint != job.fingerprint or first.cloned_from != job.cloned_from):
        raise KeyReused
    return first


def claim(
    session: Session,
    *,
    worker: str,
    lease_seconds: float,
    retry_policy: RetryPolicy,
    gpus: int | None = None,
    running_quota: int | None = None,
) -> Claim | None:
    """Take the next waiting job, those of lost workers included; None when nothing waits that asks for as many GPUs at
    most, of a project with room for it. `running_quota` is what a project may have running that has no own limit."""
    # In this order: who settles waits for rows of others, and must not hold any meanwhile that those may wait for.
    settle(session)
    expire(session, retry_policy)
    claimable = [Job.status == "queued", Job.shards_left == 0, or_(Job.not_before.is_(None), Job.not_before <= now())]
    if gpus is not None:
        claimable.append(gpus >= usage.GPUS_WANTED)
    claimed: Sequence[Job] = []
    for project_id in _whose_turn(session, and_(*claimable), running_quota):
        waiting = select(Job.id).where(Job.project_id == project_id, *claimable)
        waiting = waiting.order_by(Job.priority.desc(), Job.id).limit(1)
        with session.begin_nested() as place:
            claimed = _take(session, waiting, worker=worker, lease_seconds=lease_seconds)
            if claimed and quotas.is_over(session, project_id, running_quota):
                # Another worker took the project's last place at the same moment.
                place.rollback()
                claimed = []
        if claimed:
            break
    if not claimed:
        return None
    job = claimed[0]
    session.add(Attempt(job_id=job.id, attempt=job.attempt, worker=worker))
    if job.stop_requested:
        # The worker that was asked is gone; so that nobody has to ask again.
        _move(session, "stopping", Job.id == job.id)
    shard = Shard(job.parent_id, job.shard, job.shard_count) if job.parent_id and job.shard else None
    return Claim(job.id, job.attempt, parse_request(job.spec).spec, shard, merges=0 if shard else job.shard_count)


def _take(session: Session, waiting: Select[str], *, worker: str, lease_seconds: float) -> Sequence[Job]:
    return _move(
        session,
        "running",
        Job.id == waiting.with_for_update(skip_locked=True).scalar_subquery(),
        event="job.claimed",
        details={"worker": worker},
        attempt=Job.attempt + 1,
        owner=worker,
        lease_until=seconds_from_now(lease_seconds),
        not_before=None,
        started_at=now(),
        phase="preparing",
        progress=None,
        results=None,
    )


def _whose_turn(session: Session, claimable: ColumnElement[bool], running_quota: int | None) -> Sequence[str]:
    """List the projects that have jobs to claim: those with the fewest in workers' hands first, of equals any. So
    nobody's many jobs hold up the one of another; what is urgent goes first among a project's own."""
    # A look at one row for each project: all waiting jobs would be too many to read for each claim.
    # With a limit, so that no plan joins the two tables whole; in the order of the index, so that none reads the table
    # in search of a row, however outdated the statistics are.
    one = select(Job.id).where(Job.project_id == Project.id, claimable)
    one = one.order_by(Job.priority.desc(), Job.id).limit(1)
    held = select(Job.project_id, func.count().label("count")).where(*AT_WORK).group_by(Job.project_id)
    counted = held.subquery()
    count = func.coalesce(counted.c.count, 0)
    projects = select(Project.id).outerjoin(counted, counted.c.project_id == Project.id)
    projects = projects.where(one.scalar_subquery().is_not(None), quotas.lets_run(count, running_quota))
    return session.scalars(projects.order_by(count, func.random())).all()


def gpus_wanted(session: Session, *, seconds: float) -> Sequence[int]:
    """Say what numbers of GPUs the jobs ask for that have waited for longer than so many seconds."""
    for_long = Job.status == "queued", Job.shards_left == 0, Job.updated_at < seconds_from_now(-seconds)
    return session.scalars(select(usage.GPUS_WANTED).where(*for_long).distinct()).all()


def expire(session: Session, retry_policy: RetryPolicy) -> None:
    """Take back the jobs whose lease has run out, and those whose worker does not heed a cancel. Any process may do
    this at any time."""
    lapsed = and_(Job.status.in_(HELD), Job.lease_until < now())
    long_ago = Job.asked_at < seconds_from_now(-retry_policy.cancel_seconds)
    ignored = and_(Job.status == "cancelling", Job.shards_left == 0, long_ago)
    # In one order, and past the rows that somebody else is at.
    found = select(Job).where(or_(lapsed, ignored)).order_by(Job.id).with_for_update(skip_locked=True)
    for job in session.scalars(found, execution_options={"populate_existing": True}).all():
        _after_crash(session, job, retry_policy, code="worker_lost", cause="the worker was no longer heard of")


def settle(session: Session, job_id: str | None = None) -> None:
    """Let the jobs that wait for their shards follow them, or this one alone. Any process may do this at any time."""
    waiting = select(Job).where(Job.shards_left > 0, Job.finished_at.is_(None))
    if job_id:
        waiting = waiting.where(Job.id == job_id)
    # In one order, and past those that somebody else is at.
    found = waiting.order_by(Job.id).with_for_update(skip_locked=True)
    held = session.scalars(found, execution_options={"populate_existing": True}).all()
    parts = shards.of_each(session, [job.id for job in held])
    for job in held:
        _follow(session, job, parts[job.id])


def _follow(session: Session, job: Job, parts: Sequence[Job]) -> Job:
    """Take over how the shards of a job fare, and move it where that takes it. The caller holds the job."""
    job = _tell_of(session, job, parts)
    idle = not any(part.status in HELD for part in parts)
    failed = next((part for part in parts if part.status == "failed"), None)
    this = Job.id == job.id
    if job.status == "cancelling" and idle:
        return _leave(session, job, "cancelled")
    if job.status == "queued" and (failed or not idle):
        (job,) = _move(session, "running", this, phase="evaluating", started_at=now())
    if failed and job.status in ("running", "pausing"):
        _cancel_shards(session, job)
        assert failed.failure
        failure = Failure.model_validate(failed.failure)
        told = f"Shard {failed.shard} of {failed.shard_count}: {failure.message}"
        _fail(session, job, failure.model_copy(update={"message": told}), cause=told)
    elif job.status == "pausing" and idle:
        return _leave(session, job, "paused")
    elif job.status == "running" and job.shards_left == 0:
        return _leave(session, job, "queued", event="job.gathered")
    return job


def _tell_of(session: Session, job: Job, parts: Sequence[Job]) -> Job:
    """Show what has changed in the shards of a job."""
    shown, before = shards.show(parts), job.shards or []
    progress = job.progress if job.status == "queued" else shards.progress(parts).model_dump(mode="json")
    if (shown, progress) == (before, job.progress):
        return job
    done = sum(part.status == "succeeded" for part in parts)
    changed = [now_is for now_is, was in zip(shown, before, strict=True) if now_is["status"] != was["status"]]
    values = {"shards": shown, "shards_left": len(parts) - done, "progress": progress}
    (job,) = change(session, Job.id == job.id, events=len(changed), **values)
    told = {"done": done, "count": len(parts)}
    append(session, job, [("shard", {"number": each["number"], "status": each["status"], **told}) for each in changed])
    return job


def _pause_shards(session: Session, job: Job) -> None:
    shards.of(session, job.id, lock=True)
    _move(session, "paused", Job.parent_id == job.id, Job.status == "queued")
    _move(session, "pausing", Job.parent_id == job.id, Job.status == "running", asked_at=now())


def _cancel_shards(session: Session, job: Job) -> None:
    held = {shard.id for shard in shards.of(session, job.id, lock=True) if shard.status in HELD}
    for shard in _move(session, "cancelling", Job.parent_id == job.id, asked_at=now()):
        if shard.id not in held:
            _leave(session, shard, "cancelled")


def heartbeat(session: Session, claim: Claim, *, lease_seconds: float) -> Status:
    """Renew the lease; the status says what is asked of the worker. Raises LeaseLost."""
    renewed = update(Job).where(*owned(claim)).values(lease_until=seconds_from_now(lease_seconds))
    return only(claim, session.scalars(renewed.returning(Job.status)).all())


def look(session: Session, claim: Claim) -> Status:
    """Read what is asked of the worker. Raises LeaseLost."""
    return only(claim, session.scalars(select(Job.status).where(*owned(claim))).all())


def succeed(session: Session, claim: Claim, reports: Reports) -> None:
    """End the job well. One that is being cancelled ends cancelled all the same. Raises LeaseLost."""
    job = _hold(session, claim)
    if job.status == "cancelling":
        _leave(session, job, "cancelled")
        return
    _leave(session, job, "succeeded", results=Results.of(reports).model_dump(mode="json"))


def fail(session: Session, claim: Claim, failure: Failure) -> None:
    """End the job badly. One that is being cancelled ends cancelled all the same. Raises LeaseLost."""
    job = _hold(session, claim)
    if job.status == "cancelling":
        _leave(session, job, "cancelled")
    else:
        _fail(session, job, failure, cause=failure.message)


def hand_back(session: Session, claim: Claim) -> None:
    """Put the job aside where somebody asked for that, else let another worker go on from its last state; this is no
    crash. Raises LeaseLost."""
    job = _hold(session, claim)
    match job.status:
        case "cancelling":
            _leave(session, job, "cancelled")
        case "pausing":
            _leave(session, job, "paused")
        case _:
            _leave(session, job, "queued", event="job.handed_back", outcome="handed_back")


def record_crash(session: Session, claim: Claim, *, cause: str, retry_policy: RetryPolicy) -> None:
    """Note that the training process was killed from outside, and let the job start again. Raises LeaseLost.

    cause: what is known of it, for people; of OUT_OF_MEMORY a second time the job fails.
    """
    _after_crash(session, _hold(session, claim), retry_policy, code="repeated_crash", cause=cause)


def ask(session: Session, job_id: str, action: Action) -> Job:
    """Pause, resume, stop or cancel a job: a waiting one at once, one that a worker has by asking the worker. Asking
    again changes nothing. Raises NotAllowed."""
    job = hold(session, Job, job_id)
    if job.status in ACTIONS[action].granted or (action == "stop" and job.stop_requested):
        return job
    if action not in allowed_actions(job):
        raise NotAllowed(job, action)
    this = Job.id == job_id
    match action:
        case "pause":
            (job,) = _move(session, "pausing", this, asked_at=now())
            if job.shards_left:
                _pause_shards(session, job)
                job = _follow(session, job, shards.of(session, job_id))
        case "resume":
            (job,) = _move(session, "queued", this, event="job.resumed", not_before=None)
            if job.shards_left:
                _move(session, "queued", Job.parent_id == job_id, event="job.resumed", not_before=None)
        case "stop":
            (job,) = _move(session, "stopping", this, asked_at=now(), stop_requested=True)
        case "cancel":
            nobody_has_it = job.status not in HELD
            (job,) = _move(session, "cancelling", this, asked_at=now())
            if job.shards_left:
                _cancel_shards(session, job)
                job = _follow(session, job, shards.of(session, job_id))
            elif nobody_has_it:
                job = _leave(session, job, "cancelled")
    return job


def retry(session: Session, job_id: str, *, most_webhooks: int = 0) -> Created:
    """Queue a job with the spec of one that has failed or was cancelled, to go on from its last state. There is one
    retry of a job: asking again finds it. Raises NotAllowed, and what `create` raises."""
    job = hold(session, Job, job_id)
    if "retry" not in allowed_actions(job):
        raise NotAllowed(job, "retry")
    first = session.scalars(select(Job).where(Job.retry_of == job_id)).one_or_none()
    if first:
        return Created(first, replayed=True)
    return create(
        session,
        job.project_id,
        parse_request(job.spec),
        retry_of=job_id,
        most_webhooks=most_webhooks,
        in_shards=job.shard_count,
    )


def remove(session: Session, job_id: str) -> Sequence[str]:
    """Delete the rows of an ended job and of its shards, and give the ids of all these: their files are the caller's to
    delete, after the commit. Raises NotAllowed, Deleted, and assets.InUse where what has not ended needs them: a retry
    that goes on from a state of it, or what starts from a checkpoint of it."""
    job = hold(session, Job, job_id)
    if job.status not in TERMINAL or job.parent_id:
        raise NotAllowed(job, "delete")
    if retry := _unfinished_retry(session, job_id):
        raise assets.InUse([retry])
    checkpoints = select(Checkpoint.id).where(Checkpoint.job_id == job_id).with_for_update()
    if users := assets.in_use(session, session.scalars(checkpoints).all()):
        raise assets.InUse(users)
    usage.remember(session, job_id)
    session.flush()
    removed = [job_id, *(shard.id for shard in shards.of(session, job_id, lock=True))]
    session.execute(delete(Job).where(Job.id.in_(removed)))
    return removed


def _unfinished_retry(session: Session, job_id: str) -> str | None:
    """Name the job that goes on from this one, or from a retry of it, and has not ended."""
    # Held one after the other, so that none of them is retried meanwhile.
    retry_of = select(Job).where(Job.retry_of == job_id).with_for_update()
    retry = session.scalars(retry_of).one_or_none()
    if retry is None:
        return None
    return _unfinished_retry(session, retry.id) if retry.status in TERMINAL else retry.id


def _hold(session: Session, claim: Claim) -> Job:
    """Keep others from changing the job until this transaction ends. Raises LeaseLost."""
    held = select(Job).where(*owned(claim)).with_for_update()
    return only(claim, session.scalars(held, execution_options={"populate_existing": True}).all())


def _after_crash(session: Session, job: Job, retry_policy: RetryPolicy, *, code: str, cause: str) -> None:
    """Move a job whose worker or training process has crashed: to what was asked of it, back into the queue, or to
    failed where it has crashed too often."""
    match job.status:
        case "cancelling":
            _leave(session, job, "cancelled", outcome="lost", cause=cause)
            return
        case "pausing":
            counted = {"crashes": job.crashes + 1, "crashes_in_place": job.crashes_in_place + 1}
            _leave(session, job, "paused", outcome="lost", cause=cause, **counted)
            return
    crashes, in_place = job.crashes + 1, job.crashes_in_place + 1
    counted = {"crashes": crashes, "crashes_in_place": in_place}
    if cause == OUT_OF_MEMORY and _was_lost_by(session, job, cause):
        _fail(session, job, _host_out_of_memory(), outcome="lost", cause=cause, **counted)
    elif in_place >= retry_policy.max_crashes_in_place:
        failure = _repeated_crash(f"The job was lost {in_place} times without getting any further", cause)
        _fail(session, job, failure, outcome="lost", cause=cause, **counted)
    elif crashes >= retry_policy.max_crashes:
        story = f"The job was lost {crashes} times"
        failure = _worker_lost(story, cause) if code == "worker_lost" else _repeated_crash(story, cause)
        _fail(session, job, failure, outcome="lost", cause=cause, **counted)
    else:
        wait = min(retry_policy.backoff_seconds * 2 ** (crashes - 1), retry_policy.max_backoff_seconds)
        later = {"not_before": seconds_from_now(wait), **counted}
        _leave(
            session,
            job,
            "queued",
            event="job.recovered",
            details={"cause": cause},
            outcome="lost",
            cause=cause,
            **later,
        )


def _was_lost_by(session: Session, job: Job, cause: str) -> bool:
    """Whether an earlier attempt at the job was lost by this."""
    same = Attempt.job_id == job.id, Attempt.attempt < job.attempt, Attempt.cause == cause
    return session.scalar(select(Attempt.attempt).where(*same).limit(1)) is not None


def _fail(session: Session, job: Job, failure: Failure, **values: Any) -> None:
    content = failure.model_dump()
    _leave(session, job, "failed", details={"failure": content}, failure=content, **values)


def _worker_lost(story: str, cause: str) -> Failure:
    return Failure(
        code="worker_lost",
        message=f"{story}; the last time {cause}.",
        hint="See whether the worker's machine runs out of memory or is being restarted, then retry the job: it goes "
        "on from its last state.",
        field=None,
        retryable=True,
    )


def _host_out_of_memory() -> Failure:
    return Failure(
        code="host_out_of_memory",
        message=f"The job was lost twice because {OUT_OF_MEMORY}.",
        hint="Lower batch_size and evaluation.batch_size, or give the worker more memory, then post the job again.",
        field=None,
        retryable=False,
    )


def _repeated_crash(story: str, cause: str) -> Failure:
    return Failure(
        code="repeated_crash",
        message=f"{story}; the last time {cause}. Most likely the machine runs out of memory.",
        hint="Lower batch_size and evaluation.batch_size, or give the worker more memory, then post the job again.",
        field=None,
        retryable=False,
    )


def _leave(
    session: Session, job: Job, to: Status, *, outcome: str | None = None, cause: str | None = None, **values: Any
) -> Job:
    """Move a job out of its worker's hands, with the end of the attempt."""
    if to in TERMINAL:
        values["finished_at"] = now()
        values["actual"] = estimates.measure(session, job.id).model_dump()
    if to in ("failed", "cancelled"):
        _keep_best(session, job)
    (job,) = _move(session, to, Job.id == job.id, lease_until=None, phase=None, **values)
    latest = Attempt.job_id == job.id, Attempt.attempt == job.attempt
    attempt = update(Attempt).where(*latest, Attempt.ended_at.is_(None))
    session.execute(attempt.values(ended_at=now(), outcome=outcome or to, cause=cause))
    return job


def _keep_best(session: Session, job: Job) -> None:
    """Let the best weights of a run that delivers none be its checkpoint."""
    of_job = State.job_id == job.id, State.kind == "best"
    best = session.scalars(select(State).where(*of_job).order_by(State.attempt.desc(), State.step.desc())).first()
    if best is None or job.checkpoint_id is not None:
        return
    checkpoint = Checkpoint(
        id=new_id("ckpt"),
        job_id=job.id,
        attempt=best.attempt,
        step=best.step,
        epoch=best.epoch,
        key=best.key,
        size=best.size,
        sha256=best.sha256,
    )
    session.add(checkpoint)
    (job,) = change(session, Job.id == job.id, events=1, checkpoint_id=checkpoint.id)
    told = {"kind": "best", "sha256": best.sha256, "size": best.size, "step": best.step, "epoch": best.epoch}
    append(session, job, [("saved", {**told, "checkpoint": checkpoint.id})])


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
    jobs = change(session, *where, Job.status.in_(sources), events=1, status=to, **values)
    for job in jobs:
        append(session, job, [(event or f"job.{to}", {"attempt": job.attempt, **(details or {})})])
        subscriptions.announce(session, job)
    return jobs
