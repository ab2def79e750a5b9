"""A user's operations on jobs, without HTTP: create, request an action, retry, delete.

The operations of workers are in `app.jobs.claims`; every change of status goes through `app.jobs.moves`. The caller
opens the transaction and commits it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.assets import assets, inputs
from app.assets.architectures import capability_of
from app.assets.checkpoints import find_checkpoint
from app.jobs import estimates, labels, leftovers, shards
from app.jobs.history import append_events
from app.jobs.moves import TERMINAL, leave, move
from app.jobs.requirements import Requirements, read_key
from app.platform.database import lock_row, now
from app.projects import audit, totals
from app.projects.ids import next_id
from app.schemas import Action, Status
from app.schemas.job_request import AnyRequest, parse_request
from app.tables import CLAIMED, Checkpoint, Job, Webhook
from app.webhooks import deliveries, subscriptions
from core.schema.spec_warnings import spec_warnings


@dataclass(frozen=True)
class Rule:
    """When an action may be asked for."""

    allowed: frozenset[Status]
    """The statuses in which it changes something."""
    granted: frozenset[Status]
    """The statuses in which it is done or no longer needed: asking again changes nothing and is not an error."""


ACTIONS: Mapping[Action, Rule] = {
    "pause": Rule(frozenset({"running"}), frozenset({"pausing", "paused"})),
    "resume": Rule(frozenset({"paused"}), frozenset({"queued", "running"})),
    "stop": Rule(frozenset({"running"}), frozenset({"stopping"})),
    "cancel": Rule(
        frozenset({"queued", "running", "pausing", "paused", "stopping"}), frozenset({"cancelling", "cancelled"})
    ),
    "retry": Rule(frozenset({"failed", "cancelled"}), frozenset()),
}


_ACTS: Mapping[Action, audit.Act] = {
    "pause": "job.pause",
    "resume": "job.resume",
    "stop": "job.stop",
    "cancel": "job.cancel",
}


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
    """A job, and whether an earlier request had created it."""

    job: Job
    replayed: bool
    webhook: Webhook | None = None
    """The webhook that was created for the address in the spec."""


def allowed_actions(job: Job) -> list[Action]:
    """List what may be asked of a job. Nothing may be asked of a shard: its parent passes requests on to it."""
    if job.parent_id:
        return []
    # An evaluation has no result before its end.
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
    """Queue a job, or find the one that this idempotency key has queued before.

    retry_of: the job that this one continues; a job has at most one retry. cloned_from: the job whose spec it varies.
    most_webhooks: the number of webhooks that the project may have, with the one that the spec may name. in_shards: the
    number of shards, 0 for one piece.

    Raises KeyReused where the key belongs to a job with another spec, inputs.Gone where a file that the spec names was
    deleted, and subscriptions.TooMany.
    """
    estimate = estimates.predict(session, project_id, request).model_dump()
    retried = shards.of_job(session, retry_of) if retry_of else []
    job = _row_of(
        request,
        requires=Requirements.of(request, _needs_of_base(session, project_id, request)).key,
        id=next_id(session, project_id, "job"),
        project_id=project_id,
        idempotency_key=idempotency_key,
        estimate=estimate,
        retry_of=retry_of,
        cloned_from=cloned_from,
        shard_count=in_shards,
        shards_left=in_shards,
    )
    made = shards.make(job, retried)
    job.shards = shards.show(made) or None
    if (first := _insert(session, job)) is not None:
        return Created(first, replayed=True)
    inputs.link(session, job, request)
    labels.write(session, job)
    lineage = {name: value for name, value in (("retry_of", retry_of), ("cloned_from", cloned_from)) if value}
    append_events(session, job, [("job.created", lineage)])
    audit.record(session, project_id, "job.create", job.id, **lineage)
    if made:
        session.add_all(made)
        session.flush()
    for shard in made:
        append_events(session, shard, [("job.created", {"shard": shard.shard, "of": job.id})])
    webhook = None
    if request.webhook:
        webhook = subscriptions.ensure(session, project_id, request.webhook.url, limit=most_webhooks)
    deliveries.queue(session, job)
    return Created(job, replayed=False, webhook=webhook)


def _needs_of_base(session: Session, project_id: str, request: AnyRequest) -> Sequence[str]:
    """Name the capabilities that a worker needs to build the base model of a job."""
    name = getattr(request, "base_model", "")
    model = assets.find(session, "model", project_id, name) if name else None
    if model is not None:
        needed = capability_of((model.summary or {}).get("architecture", ""))
        return [needed] if needed else []
    made = find_checkpoint(session, project_id, name) if name else None
    # A checkpoint is of the network that its own job needed.
    return read_key(session.get_one(Job, made.job_id).requires).capabilities if made else []


def _row_of(request: AnyRequest, **values: Any) -> Job:
    return Job(
        fingerprint=_fingerprint(request),
        kind=request.kind,
        name=request.name,
        base_model=getattr(request, "base_model", None),
        dataset=request.dataset,
        priority=request.priority,
        spec=request.model_dump(mode="json"),
        warnings=[warning.model_dump() for warning in spec_warnings(request)],
        labels=dict(request.metadata),
        event_seq=1,
        created_by=audit.actor(),
        **values,
    )


def was_posted(session: Session, project_id: str, request: AnyRequest, idempotency_key: str) -> bool:
    """Whether this key has queued a job with this spec before."""
    same = Job.idempotency_key == idempotency_key, Job.fingerprint == _fingerprint(request)
    return session.scalar(select(Job.id).where(Job.project_id == project_id, *same)) is not None


def _fingerprint(request: AnyRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def _insert(session: Session, job: Job) -> Job | None:
    """Insert a job, or find the one that the same request has created. Raises KeyReused."""
    for is_last in (False, True):
        try:
            with session.begin_nested():
                session.add(job)
        except IntegrityError:
            if first := _same_request(session, job):
                return first
            # That job was deleted in between, so this one can be inserted now.
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


def ask(session: Session, job_id: str, action: Action) -> Job:
    """Pause, resume, stop or cancel a job: a waiting one at once, a claimed one by asking its worker. Asking again
    changes nothing. Raises NotAllowed."""
    job = lock_row(session, Job, job_id)
    if job.status in ACTIONS[action].granted or (action == "stop" and job.stop_requested):
        return job
    if action not in allowed_actions(job):
        raise NotAllowed(job, action)
    this = Job.id == job_id
    caller: dict[str, Any] = {"updated_by": audit.actor()}
    match action:
        case "pause":
            (job,) = move(session, "pausing", this, asked_at=now(), **caller)
            if job.shards_left:
                job = shards.pause(session, job)
        case "resume":
            (job,) = move(session, "queued", this, event="job.resumed", not_before=None, **caller)
            if job.shards_left:
                move(session, "queued", Job.parent_id == job_id, event="job.resumed", not_before=None)
        case "stop":
            (job,) = move(session, "stopping", this, asked_at=now(), stop_requested=True, **caller)
        case "cancel":
            was_claimed = job.status in CLAIMED
            (job,) = move(session, "cancelling", this, asked_at=now(), **caller)
            if job.shards_left:
                shards.cancel(session, job)
                job = shards.update_parent(session, job, shards.of_job(session, job_id))
            elif not was_claimed:
                job = leave(session, job, "cancelled")
    audit.record(session, job.project_id, _ACTS[action], job_id)
    return job


def retry(session: Session, job_id: str, *, most_webhooks: int = 0) -> Created:
    """Queue a job with the spec of one that has failed or was cancelled, to resume from its last state. A job has one
    retry: asking again finds it. Raises NotAllowed, and what `create` raises."""
    job = lock_row(session, Job, job_id)
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
    """Delete an ended job and its shards, and return their ids. The caller deletes their files after the commit. Where
    they have many rows, these are only no longer found, and `app.jobs.leftovers` deletes them later.

    Raises NotAllowed, Deleted, and assets.InUse where something unfinished needs the job: a retry that resumes from one
    of its states, or a job or model that starts from one of its checkpoints.
    """
    job = lock_row(session, Job, job_id)
    if job.status not in TERMINAL or job.parent_id:
        raise NotAllowed(job, "delete")
    if retry := _unfinished_retry(session, job_id):
        raise assets.InUse([retry])
    checkpoints = select(Checkpoint.id).where(Checkpoint.job_id == job_id).with_for_update()
    if users := assets.in_use(session, session.scalars(checkpoints).all()):
        raise assets.InUse(users)
    session.flush()
    removed = [job_id, *(shard.id for shard in shards.of_job(session, job_id, lock=True))]
    totals.forget_job(session, job)
    audit.record(session, job.project_id, "job.delete", job_id, name=job.name, status=job.status)
    leftovers.mark(session, removed)
    return removed


def _unfinished_retry(session: Session, job_id: str) -> str | None:
    """Name the unfinished job that is a retry of this one, or a retry of such a retry."""
    # Only the last one of the chain can be unfinished. It is locked, so that it is not retried meanwhile.
    while latest := _latest_retry(session, job_id):
        job = session.get(Job, latest, with_for_update=True, populate_existing=True)
        if job is None:
            return None
        if job.status not in TERMINAL:
            return job.id
        job_id = job.id
    return None


def _latest_retry(session: Session, job_id: str) -> str | None:
    """Find the last job in the chain of retries that begins with a job; None where it was not retried."""
    chain = select(Job.id, literal(0).label("place")).where(Job.id == job_id).cte(recursive=True)
    chain = chain.union_all(select(Job.id, chain.c.place + 1).join(chain, Job.retry_of == chain.c.id))
    latest = select(chain.c.id).where(chain.c.place > 0).order_by(chain.c.place.desc()).limit(1)
    return session.scalar(latest)
