"""Totals that usage, quotas and metrics read: of bytes, of jobs that have ended, and of the time of ended attempts.

A transaction that changes what a total counts inserts the change as a `TotalChange`; it locks and updates no row that
others use. `fold` adds the changes to the `Total` rows. A reader adds up both, so a total is exact at each moment, and
the number of rows read does not depend on the number of jobs. What has not ended is counted from its own rows.

`recount` compares the totals with the rows that they count, and corrects them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, String, and_, case, cast, delete, exists, func, insert, or_, select, union_all
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.platform.database import seconds_between
from app.schemas import UploadStatus
from app.tables import POSTED, Attempt, Checkpoint, Job, Model, State, Total, TotalChange, Upload

INSTANCE = ""
"""In place of a project's id: a total of all projects, deleted ones too."""
WAITS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600)
"""Upper bounds in seconds for the time from the posting of a job to its first claim."""
GPUS_WANTED = func.coalesce(Job.spec["gpus"].as_integer(), 1)
"""The number of GPUs that a job asks for. An evaluation names no number: it takes one."""
STORED: frozenset[UploadStatus] = frozenset({"pending", "verifying", "completed"})
"""The uploads that count against the quota."""
_FOLDED_AT_ONCE = 2000
_NEGLIGIBLE = 1e-3
"""Tolerance for sums of seconds, which depend on the order of their additions; bytes and jobs are exact."""

# A run that has not said where it computes has not computed yet.
_ON_GPU = func.coalesce(Attempt.device, "cpu").not_like("cpu%")
_GPUS_TAKEN = case((_ON_GPU, GPUS_WANTED), else_=0)
# Of a job in shards it is the first of them that tells.
_WAITED = case(
    (
        and_(Attempt.attempt == 1, or_(Job.shard_count == 0, Job.shard == 1)),
        seconds_between(Attempt.started_at, Job.created_at),
    ),
)
# A shard is part of the job that was posted.
_ROOT = func.coalesce(Job.parent_id, Job.id)
# The best weights of a run that has failed are a state and a checkpoint, and one file.
_ALSO_CHECKPOINT = exists().where(Checkpoint.job_id == State.job_id, Checkpoint.key == State.key)


class Key(NamedTuple):
    """The name of a total. What does not apply is empty."""

    project_id: str
    what: str
    """stored_bytes, uploaded_bytes: of a project's jobs, and of its uploads and models.

    jobs: jobs that have ended and were not deleted, by the day of their posting; the name is their status.

    worker_seconds, gpu_seconds: time of ended attempts, by day, kind, data set and base model.

    jobs_at_work: jobs with an ended attempt on the day; the name is the day before it on which they were at work, too.
    So the jobs at work between two days can be added up, each once.

    attempts, held_seconds, held_gpu_seconds, claims, claim_seconds, claims_within: of the instance, for its metrics.
    """
    day: str = ""
    name: str = ""
    kind: str = ""
    dataset: str = ""
    base_model: str = ""


class Amounts(defaultdict[Key, float]):
    """Amounts by the totals that they belong to; 0 for any other."""

    def __init__(self) -> None:
        super().__init__(float)

    def add(self, other: Mapping[Key, float], *, times: int = 1) -> None:
        """Add other amounts to these."""
        for key, amount in other.items():
            self[key] += times * amount


@dataclass(frozen=True)
class Work:
    """An attempt, as the totals count it."""

    project_id: str
    job_id: str
    """The job that was posted, also where the attempt is one at a shard."""
    kind: str
    dataset: str
    base_model: str | None
    gpus: int
    """0 on a CPU."""
    started_at: datetime
    ended_at: datetime
    outcome: str
    waited: float | None
    """Seconds that its job had waited before its first attempt; None for later attempts."""


def add(session: Session, amounts: Mapping[Key, float], *, of_deleted: bool = False) -> None:
    """Add to totals, with the transaction of the caller."""
    rows = [{**key._asdict(), "of_deleted": of_deleted, "amount": amount} for key, amount in amounts.items() if amount]
    if rows:
        session.execute(insert(TotalChange), rows)


def read(session: Session, *what: str, project_ids: Sequence[str], days: tuple[str, str] | None = None) -> Amounts:
    """Read totals. days: from the first to before the second."""
    # One statement, so that a change that is being folded counts once.
    first, last = days or ("", "~")
    parts = [
        select(*(getattr(table, name) for name in Key._fields), table.amount).where(
            table.what.in_(what), table.project_id.in_(project_ids), table.day >= first, table.day < last
        )
        for table in (Total, TotalChange)
    ]
    found: Amounts = Amounts()
    for *key, amount in session.execute(union_all(*parts)):
        found[Key(*key)] += amount
    return found


def read_one(session: Session, project_id: str, *what: str) -> float:
    """Read one or more totals of a project, added up."""
    parts = [
        select(func.sum(table.amount)).where(table.what.in_(what), table.project_id == project_id).scalar_subquery()
        for table in (Total, TotalChange)
    ]
    return float(sum(amount or 0 for amount in session.execute(select(*parts)).one()))


def count_bytes(session: Session, project_id: str, size: int, *, uploaded: bool = False) -> None:
    """Count bytes that are stored for a project from now on, or, where the size is negative, no longer."""
    add(session, {Key(project_id, "uploaded_bytes" if uploaded else "stored_bytes"): size})


def count_job(session: Session, job: Job, *, times: int = 1) -> None:
    """Count a job that has ended; times: -1 where it is deleted. Shards do not count."""
    if not job.parent_id:
        add(
            session,
            {
                Key(job.project_id, "jobs", day=day_of(job.created_at), name=job.status): times,
                Key(INSTANCE, "jobs", name=job.status): times,
            },
        )


def count_attempt(session: Session, job: Job) -> None:
    """Count the attempt of a job that has just ended."""
    root = job.parent_id or job.id
    if job.shard_count:
        _wait_for_turn(session, root)
    works = list(_works(session, Job.id.in_(with_shards(session, [root]))))
    this = (job.id, job.attempt)
    after = account(work for _, work in works)
    after.add(account(work for place, work in works if place != this), times=-1)
    add(session, after)


def forget_job(session: Session, job: Job) -> None:
    """Count the time of a job and of its shards as that of a deleted job, and its files as deleted."""
    own = Job.id.in_(with_shards(session, [job.id]))
    spent = account(work for _, work in _works(session, own))
    add(session, {key: -amount for key, amount in spent.items()})
    add(session, spent, of_deleted=True)
    count_bytes(session, job.project_id, -sum(amount for _, amount in _bytes_of_jobs(session, own)))
    count_job(session, job, times=-1)


def under_way(session: Session, project_ids: Sequence[str] | None, at: datetime) -> Amounts:
    """Count the attempts that have not ended: what the totals would gain if all of them ended at this moment.

    project_ids: None for all.
    """
    # These first: a planner may otherwise look at each job of the project.
    live = session.scalars(select(Attempt.job_id).where(Attempt.ended_at.is_(None))).all()
    mine = [] if project_ids is None else [Job.project_id.in_(project_ids)]
    roots = session.scalars(select(_ROOT).distinct().where(Job.id.in_(live), *mine)).all() if live else []
    if not roots:
        return Amounts()
    works = list(_works(session, Job.id.in_(with_shards(session, roots)), at=at))
    gained = account(work for _, work in works)
    gained.add(account(work for place, work in works if place is not None), times=-1)
    return gained


def with_shards(session: Session, job_ids: Sequence[str]) -> Sequence[str]:
    """Add the ids of the shards of jobs to theirs."""
    # Asked for both in one condition, with OR, a planner may read all jobs.
    return [*job_ids, *session.scalars(select(Job.id).where(Job.parent_id.in_(job_ids)))]


def account(works: Iterable[Work]) -> Amounts:
    """Add up what attempts count."""
    amounts: Amounts = Amounts()
    for _, of_job in groupby(sorted(works, key=lambda work: work.job_id), key=lambda work: work.job_id):
        days: set[str] = set()
        for work in of_job:
            for day, seconds in _by_day(work.started_at, work.ended_at):
                days.add(day)
                group = {"day": day, "kind": work.kind, "dataset": work.dataset, "base_model": work.base_model or ""}
                amounts[Key(work.project_id, "worker_seconds", **group)] += seconds
                if work.gpus:
                    amounts[Key(work.project_id, "gpu_seconds", **group)] += seconds * work.gpus
            amounts.add(_of_instance(work))
        before = ""
        for day in sorted(days):
            group = {"day": day, "kind": work.kind, "dataset": work.dataset, "base_model": work.base_model or ""}
            amounts[Key(work.project_id, "jobs_at_work", name=before, **group)] += 1
            before = day
    return amounts


def fold(session: Session) -> bool:
    """Add some changes to their totals; return whether there may be more. The caller keeps others from doing the same
    at the same time."""
    some = select(TotalChange.id).order_by(TotalChange.id).limit(_FOLDED_AT_ONCE)
    columns = [getattr(TotalChange, name) for name in (*Key._fields, "of_deleted", "amount")]
    changes = session.execute(delete(TotalChange).where(TotalChange.id.in_(some)).returning(*columns)).all()
    amounts: Counter[tuple[Any, ...]] = Counter()
    for *key, amount in changes:
        amounts[tuple(key)] += amount
    if amounts:
        names = (*Key._fields, "of_deleted")
        rows = [{**dict(zip(names, key, strict=True)), "amount": amount} for key, amount in sorted(amounts.items())]
        upsert = postgresql.insert if session.connection().dialect.name == "postgresql" else sqlite.insert
        statement = upsert(Total)
        added = {"amount": Total.amount + statement.excluded.amount}
        session.execute(statement.on_conflict_do_update(index_elements=names, set_=added), rows)
    return len(changes) == _FOLDED_AT_ONCE


def recount(session: Session) -> Mapping[Key, float]:
    """Compare the totals with the rows that they count, correct them, and return what was added to which.

    The transaction must see one state of the database (`Database.writing_on_one_state`).
    """
    truth = _count_all(session)
    for table in (Total, TotalChange):
        sums = select(*(getattr(table, name) for name in Key._fields), func.sum(table.amount))
        kept = sums.where(table.of_deleted.is_(False)).group_by(*(getattr(table, name) for name in Key._fields))
        for *key, amount in session.execute(kept):
            truth[Key(*key)] -= amount
    wrong = {key: amount for key, amount in truth.items() if abs(amount) > _NEGLIGIBLE}
    add(session, wrong)
    return wrong


def day_of(moment: datetime) -> str:
    """Name the day of a moment, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


def _count_all(session: Session) -> Amounts:
    amounts = account(work for _, work in _works(session, Job.deleted_at.is_(None)))
    day = func.substr(cast(Job.created_at, String), 1, 10)
    ended = select(Job.project_id, day, Job.status, func.count()).where(*POSTED, Job.finished_at.is_not(None))
    for project_id, posted_on, status, count in session.execute(ended.group_by(Job.project_id, day, Job.status)):
        amounts[Key(project_id, "jobs", day=posted_on, name=status)] += count
        amounts[Key(INSTANCE, "jobs", name=status)] += count
    for project_id, size in _bytes_of_jobs(session, Job.deleted_at.is_(None)):
        amounts[Key(project_id, "stored_bytes")] += size
    uploaded = select(Upload.project_id, func.sum(Upload.size)).where(Upload.status.in_(STORED))
    copied = select(Model.project_id, func.sum(Model.size)).where(Model.upload_id.is_(None))
    for query in (uploaded.group_by(Upload.project_id), copied.group_by(Model.project_id)):
        for project_id, size in session.execute(query):
            amounts[Key(project_id, "uploaded_bytes")] += int(size)
    return amounts


def _bytes_of_jobs(session: Session, *jobs: ColumnElement[bool]) -> Iterator[tuple[str, int]]:
    """Add up the files of jobs by project and table: checkpoints, states and logs."""
    state_size = case((_ALSO_CHECKPOINT, 0), else_=State.size)
    tables = (Checkpoint.size, Checkpoint.job_id), (state_size, State.job_id), (Attempt.log_size, Attempt.job_id)
    for size, job_id in tables:
        sums = select(Job.project_id, func.sum(size)).join(Job, Job.id == job_id).where(*jobs)
        yield from ((row[0], int(row[1])) for row in session.execute(sums.group_by(Job.project_id)).all())


def _works(
    session: Session, *jobs: ColumnElement[bool], at: datetime | None = None
) -> Iterator[tuple[tuple[str, int] | None, Work]]:
    """Read the attempts at jobs, each with its job and number where it has ended. at: also those that have not, as if
    they ended then; they have no job and number here."""
    told: list[Any] = [Job.id, Attempt.attempt, Attempt.device, Attempt.started_at, Attempt.ended_at, Attempt.outcome]
    told += [_WAITED, Job.project_id, _ROOT, Job.kind, Job.dataset, Job.base_model, _GPUS_TAKEN]
    query = select(*told).join(Attempt, Attempt.job_id == Job.id).where(*jobs)
    if at is None:
        query = query.where(Attempt.ended_at.is_not(None))
    for job_id, number, device, started_at, ended_at, outcome, waited, *facts in session.execute(query).all():
        if ended_at is not None:
            yield (job_id, number), _work(facts, started_at, ended_at, outcome or "unknown", waited)
        elif at is not None:
            # One that has not said where it computes would count as on a CPU, and then no longer.
            until = max(at, started_at) if device else started_at
            yield None, _work(facts, started_at, until, "under_way", waited)


def _work(facts: Sequence[Any], started_at: datetime, ended_at: datetime, outcome: str, waited: float | None) -> Work:
    project_id, job_id, kind, dataset, base_model, gpus = facts
    return Work(project_id, job_id, kind, dataset, base_model, gpus, started_at, ended_at, outcome, waited)


def _of_instance(work: Work) -> Mapping[Key, float]:
    seconds = (work.ended_at - work.started_at).total_seconds()
    amounts = {
        Key(INSTANCE, "attempts", name=work.outcome): 1.0,
        Key(INSTANCE, "held_seconds", name="gpu" if work.gpus else "cpu"): seconds,
        Key(INSTANCE, "held_gpu_seconds"): seconds * work.gpus,
    }
    if work.waited is not None:
        amounts |= {Key(INSTANCE, "claims"): 1.0, Key(INSTANCE, "claim_seconds"): work.waited}
        within = (bound for bound in WAITS if work.waited <= bound)
        amounts |= {Key(INSTANCE, "claims_within", name=str(float(bound))): 1.0 for bound in within}
    return amounts


def _wait_for_turn(session: Session, job_id: str) -> None:
    """Wait for other transactions that end an attempt at the same job in shards: each has to see what the other has
    ended. SQLite has one writer."""
    if session.connection().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(job_id, 0))))


def _by_day(started_at: datetime, ended_at: datetime) -> Iterator[tuple[str, float]]:
    """Divide a time by days in UTC."""
    start, end = started_at.astimezone(UTC), ended_at.astimezone(UTC)
    while start < end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        yield f"{start:%Y-%m-%d}", (min(midnight, end) - start).total_seconds()
        start = midnight
