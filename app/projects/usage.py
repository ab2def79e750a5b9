"""Usage of a project: jobs, worker time and GPU time, bytes. Each query counts the rows; no counter is stored.

Worker time is the time between the begin and the end of attempts; GPU time is that of attempts on GPUs, times their
number. The attempts of a deleted job are kept as `PastAttempt`, so that deleting does not free a quota, and no counter
falls.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, case, exists, func, literal, or_, select
from sqlalchemy.orm import Session

from app.platform.database import Timestamp, now, seconds_between
from app.schemas import GroupBy, Status, UploadStatus
from app.tables import ApiKey, Attempt, Checkpoint, Job, Model, PastAttempt, State, Task, Upload

GPUS_WANTED = func.coalesce(Job.spec["gpus"].as_integer(), 1)
"""How many GPUs a job asks for. An evaluation names no number: it takes one."""
# A run that has not said where it computes has not computed yet.
ON_GPU = func.coalesce(Attempt.device, "cpu").not_like("cpu%")
"""Whether an attempt computes on GPUs."""
GPUS_TAKEN = case((ON_GPU, GPUS_WANTED), else_=0)
"""How many GPUs an attempt has taken; 0 on a CPU."""
WAITED = case(
    # Of a job in shards it is the first of them that tells.
    (
        and_(Attempt.attempt == 1, or_(Job.shard_count == 0, Job.shard == 1)),
        seconds_between(Attempt.started_at, Job.created_at),
    ),
)
"""For how many seconds a job had waited, of its first attempt; of others, nothing."""
_STORED: frozenset[UploadStatus] = frozenset({"pending", "verifying", "completed"})
"""The uploads that count against the quota."""
# A shard is part of the job that was posted.
_POSTED = func.coalesce(Job.parent_id, Job.id)


@dataclass(frozen=True)
class Stretch:
    """The time of one attempt, or a part of it."""

    job_id: str
    kind: str
    dataset: str
    base_model: str | None
    gpus: int
    """0 on a CPU."""
    started_at: datetime
    ended_at: datetime

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return (self.ended_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class Total:
    """What a group of attempts has used."""

    group: str
    jobs: int
    worker_seconds: float
    gpu_seconds: float


def stretches(session: Session, project_id: str, since: datetime, until: datetime) -> list[Stretch]:
    """List the parts of a project's attempts that lie between two moments, and before now."""
    ended = func.coalesce(Attempt.ended_at, now(), type_=Timestamp())
    told = _POSTED, Job.kind, Job.dataset, Job.base_model, GPUS_TAKEN, Attempt.started_at, ended.label("ended")
    present = select(*told).join(Job, Job.id == Attempt.job_id)
    present = present.where(Job.project_id == project_id, Attempt.started_at < until, ended > since)
    kept = PastAttempt
    past = select(kept.job_id, kept.kind, kept.dataset, kept.base_model, kept.gpus, kept.started_at, kept.ended_at)
    past = past.where(kept.project_id == project_id, kept.started_at < until, kept.ended_at > since)
    found = [
        *(Stretch(*row) for row in session.execute(present)),
        *(Stretch(*row) for row in session.execute(past)),
    ]
    return [replace(each, started_at=max(each.started_at, since), ended_at=min(each.ended_at, until)) for each in found]


def total(parts: Iterable[Stretch], group: str = "all") -> Total:
    """Add up the seconds of parts of attempts."""
    parts = list(parts)
    return Total(
        group=group,
        jobs=len({part.job_id for part in parts}),
        worker_seconds=sum(part.seconds for part in parts),
        gpu_seconds=sum(part.seconds * part.gpus for part in parts),
    )


def totals(parts: Iterable[Stretch], by: GroupBy) -> list[Total]:
    """Add up by day, month, kind, data set or base model. A job counts in each group that it was at work in."""
    groups: dict[str, list[Stretch]] = {}
    for whole in parts:
        for name, part in _divided(whole, by):
            groups.setdefault(name, []).append(part)
    return [total(found, name) for name, found in sorted(groups.items())]


def gpu_seconds(session: Session, project_ids: Sequence[str], since: datetime, until: datetime) -> Mapping[str, float]:
    """Add up each project's GPU time between two moments and before now: what `total` gives of its `stretches`, of many
    at once and without a look at each attempt."""
    ended = func.coalesce(Attempt.ended_at, now(), type_=Timestamp())
    present = select(Job.project_id, _within(Attempt.started_at, ended, since, until, GPUS_TAKEN))
    present = present.join(Attempt, Attempt.job_id == Job.id)
    present = present.where(Job.project_id.in_(project_ids), Attempt.started_at < until, ended > since)
    kept = PastAttempt
    past = select(kept.project_id, _within(kept.started_at, kept.ended_at, since, until, kept.gpus))
    past = past.where(kept.project_id.in_(project_ids), kept.started_at < until, kept.ended_at > since)
    spent = dict.fromkeys(project_ids, 0.0)
    for query in (present.group_by(Job.project_id), past.group_by(kept.project_id)):
        for project_id, seconds in session.execute(query).all():
            spent[project_id] += seconds
    return spent


def _within(
    started: SQLColumnExpression[datetime],
    ended: SQLColumnExpression[datetime],
    since: datetime,
    until: datetime,
    times: SQLColumnExpression[int],
) -> ColumnElement[float]:
    first = case((started < since, literal(since, Timestamp())), else_=started)
    last = case((ended > until, literal(until, Timestamp())), else_=ended)
    return func.sum(seconds_between(last, first) * times)


def jobs_by_status(session: Session, project_id: str, since: datetime, until: datetime) -> dict[Status, int]:
    """Count the jobs that were posted between two moments, by their status now."""
    posted = Job.project_id == project_id, Job.parent_id.is_(None), Job.created_at >= since, Job.created_at < until
    rows = session.execute(select(Job.status, func.count()).where(*posted).group_by(Job.status))
    return {row[0]: row[1] for row in rows}


def count_jobs(session: Session, project_id: str, *where: ColumnElement[bool]) -> int:
    """Count a project's jobs under these conditions."""
    found = select(func.count()).select_from(Job).where(Job.project_id == project_id, *where)
    return session.scalars(found).one()


def count_keys(session: Session, project_id: str) -> int:
    """Count a project's keys that are neither revoked nor expired."""
    valid = ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now())
    found = select(func.count()).select_from(ApiKey).where(ApiKey.project_id == project_id, *valid)
    return session.scalars(found).one()


def count_waiting_tasks(session: Session, project_id: str) -> int:
    """Count a project's tasks that no process has claimed yet, except verifications: each belongs to an upload."""
    waiting = Task.project_id == project_id, Task.status == "queued", Task.kind != "verify_upload"
    found = select(func.count()).select_from(Task).where(*waiting)
    return session.scalars(found).one()


def uploaded_bytes(session: Session, project_id: str) -> int:
    """Add up the declared bytes of a project's uploads, and those of its models that are copies of checkpoints."""
    uploaded = Upload.project_id == project_id, Upload.status.in_(_STORED)
    copied = Model.project_id == project_id, Model.upload_id.is_(None)
    sums = select(func.sum(Upload.size)).where(*uploaded), select(func.sum(Model.size)).where(*copied)
    return sum(int(size or 0) for size in session.execute(select(*(each.scalar_subquery() for each in sums))).one())


def stored_bytes(session: Session, project_id: str) -> int:
    """Add up what the object store keeps for a project: what its jobs have saved, their logs, and its uploads."""
    # The best weights of a run that has failed are a state and a checkpoint, and one file.
    also_checkpoint = exists().where(Checkpoint.job_id == State.job_id, Checkpoint.key == State.key)
    state_size = case((also_checkpoint, 0), else_=State.size)
    tables = (Checkpoint.size, Checkpoint.job_id), (state_size, State.job_id), (Attempt.log_size, Attempt.job_id)
    sizes = [
        select(func.coalesce(func.sum(size), 0))
        .join(Job, Job.id == job_id)
        .where(Job.project_id == project_id)
        .scalar_subquery()
        for size, job_id in tables
    ]
    return sum(map(int, session.execute(select(*sizes)).one())) + uploaded_bytes(session, project_id)


def keep(session: Session, job_id: str) -> None:
    """Keep what a job and its shards have used, before their rows are deleted."""
    told = Job.project_id, Job.kind, Job.dataset, Job.base_model, GPUS_TAKEN, Attempt.started_at
    ended = func.coalesce(Attempt.ended_at, now(), type_=Timestamp())
    counted = func.coalesce(Attempt.outcome, "unknown"), WAITED
    of_job = or_(Job.id == job_id, Job.parent_id == job_id)
    attempts = select(*told, ended, *counted).join(Attempt, Attempt.job_id == Job.id).where(of_job)
    for number, row in enumerate(session.execute(attempts.order_by(Job.id, Attempt.attempt)), start=1):
        names = ("project_id", "kind", "dataset", "base_model", "gpus", "started_at", "ended_at", "outcome", "waited")
        session.add(PastAttempt(job_id=job_id, attempt=number, **dict(zip(names, row, strict=True))))


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """Return the first moment of this month and that of the next, in UTC."""
    first = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first, (first + timedelta(days=32)).replace(day=1)


def _divided(whole: Stretch, by: GroupBy) -> Iterator[tuple[str, Stretch]]:
    match by:
        case "day" | "month":
            yield from _by_time(whole, by)
        case "base_model":
            yield whole.base_model or "none", whole
        case _:
            yield getattr(whole, by), whole


def _by_time(whole: Stretch, by: GroupBy) -> Iterator[tuple[str, Stretch]]:
    start = whole.started_at.astimezone(UTC)
    while start < whole.ended_at:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
        end = midnight + timedelta(days=1) if by == "day" else month_of(start)[1]
        name = f"{start:%Y-%m-%d}" if by == "day" else f"{start:%Y-%m}"
        yield name, replace(whole, started_at=start, ended_at=min(end, whole.ended_at))
        start = end
