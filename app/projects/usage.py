"""Usage of a project: jobs, worker time and GPU time, bytes.

Worker time is the time between the begin and the end of attempts; GPU time is that of attempts on GPUs, times their
number. What has ended is in the totals (`app.projects.totals`), which deleting a job does not change; the rest is
counted from the rows of what is under way.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from app.platform.database import moment, now
from app.projects import totals
from app.projects.totals import Key
from app.schemas import GroupBy, Status
from app.tables import POSTED, UNFINISHED, ApiKey, Job, Task

_TIMES = ("worker_seconds", "gpu_seconds", "jobs_at_work")


@dataclass(frozen=True)
class Days:
    """Some days in UTC, from the first to before the last."""

    since: str
    until: str

    @property
    def pair(self) -> tuple[str, str]:
        """Both days."""
        return self.since, self.until

    def has(self, key: Key) -> bool:
        """Whether the day of a total is one of them."""
        return self.since <= key.day < self.until


@dataclass(frozen=True)
class Total:
    """What a group of attempts has used."""

    group: str
    jobs: int
    worker_seconds: float
    gpu_seconds: float


def spent(session: Session, project_id: str, days: Days) -> Mapping[Key, float]:
    """Read a project's time on some days, up to now."""
    found = totals.read(session, *_TIMES, project_ids=[project_id], days=days.pair)
    found.add(totals.under_way(session, [project_id], moment(session)))
    return {key: amount for key, amount in found.items() if key.what in _TIMES and days.has(key)}


def total(amounts: Mapping[Key, float], since: str, group: str = "all") -> Total:
    """Add up times. since: the first day; a job counts once, on the first day from then on that it was at work."""
    jobs, sums = 0.0, dict.fromkeys(_TIMES, 0.0)
    for key, amount in amounts.items():
        if key.what != "jobs_at_work":
            sums[key.what] += amount
        elif key.name < since:
            jobs += amount
    return Total(group, round(jobs), max(sums["worker_seconds"], 0.0), max(sums["gpu_seconds"], 0.0))


def grouped(amounts: Mapping[Key, float], since: str, by: GroupBy) -> list[Total]:
    """Add up times by day, month, kind, data set or base model. A job counts in each group that it was at work in."""
    groups: defaultdict[str, dict[Key, float]] = defaultdict(dict)
    for key, amount in amounts.items():
        groups[_group(key, by)][key] = amount
    found = [total(part, _first_day(name, by, since), name) for name, part in sorted(groups.items())]
    return [each for each in found if each.jobs or each.worker_seconds]


def gpu_seconds(session: Session, project_ids: Sequence[str], days: Days) -> Mapping[str, float]:
    """Add up each project's GPU time on some days, up to now."""
    found = totals.read(session, "gpu_seconds", project_ids=project_ids, days=days.pair)
    found.add(totals.under_way(session, project_ids, moment(session)))
    sums = dict.fromkeys(project_ids, 0.0)
    for key, amount in found.items():
        if key.what == "gpu_seconds" and days.has(key):
            sums[key.project_id] += amount
    return sums


def jobs_by_status(session: Session, project_id: str, days: Days) -> dict[Status, int]:
    """Count the jobs that were posted on some days, by their status now."""
    ended = totals.read(session, "jobs", project_ids=[project_id], days=days.pair)
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in days.pair)
    posted = *POSTED, Job.finished_at.is_(None), Job.created_at >= first, Job.created_at < last
    live = select(Job.status, func.count()).where(Job.project_id == project_id, Job.status.in_(UNFINISHED), *posted)
    counts: dict[Status, int] = {row[0]: row[1] for row in session.execute(live.group_by(Job.status))}
    for key, count in ended.items():
        status = cast("Status", key.name)
        counts[status] = counts.get(status, 0) + round(count)
    return {status: count for status, count in counts.items() if count}


def count_jobs(session: Session, project_id: str, *where: ColumnElement[bool]) -> int:
    """Count a project's jobs under these conditions, which few jobs must fulfil: it reads a row for each."""
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
    """Read the declared bytes of a project's uploads, and those of its models that are copies of checkpoints."""
    return round(totals.read_one(session, project_id, "uploaded_bytes"))


def stored_bytes(session: Session, project_id: str) -> int:
    """Read what the object store keeps for a project: what its jobs have saved, their logs, and its uploads."""
    return round(totals.read_one(session, project_id, "stored_bytes", "uploaded_bytes"))


def month_of(at: datetime) -> tuple[datetime, datetime]:
    """Return the first moment of this month and that of the next, in UTC."""
    first = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first, (first + timedelta(days=32)).replace(day=1)


def days_of(since: datetime, until: datetime) -> Days:
    """Return the days between two moments; the first and the last count as whole days."""
    last = until.astimezone(UTC) + timedelta(days=1) - timedelta(microseconds=1)
    return Days(totals.day_of(since), totals.day_of(last))


def _group(key: Key, by: GroupBy) -> str:
    match by:
        case "day":
            return key.day
        case "month":
            return key.day[:7]
        case "base_model":
            return key.base_model or "none"
        case _:
            return str(getattr(key, by))


def _first_day(group: str, by: GroupBy, since: str) -> str:
    match by:
        case "day":
            return group
        case "month":
            return max(f"{group}-01", since)
        case _:
            return since
