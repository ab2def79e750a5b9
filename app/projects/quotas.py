"""Quotas: what a project may have at once or use in a month, by default or by limits of its own.

A request that adds something checks the quota after that, in the same transaction. The check waits for other requests
that add to the same project, counts, and raises where the limit is exceeded, which rolls the transaction back. So two
requests cannot both take the last place.
"""

from collections.abc import Mapping

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from app.platform.database import moment, now
from app.platform.settings import Settings
from app.projects import audit, usage
from app.schemas import QUOTAS, Quota
from app.tables import AT_WORK, POSTED, Job, Project

_REMEDIES: Mapping[Quota, str] = {
    "queued_jobs": "wait until some of them have started, or cancel some",
    "running_jobs": "wait until some of them have ended",
    "waiting_tasks": "wait until some of the project's files were inspected",
    "gpu_seconds_per_month": "wait for the first of next month (UTC)",
    "stored_bytes": "abort uploads, or delete jobs or files, that are no longer needed",
    "streams_per_key": "close one, or poll instead",
    "keys": "revoke one that is no longer used",
}

DEFAULTS: Mapping[Quota, int | None] = {"keys": 100, "streams_per_key": None}
"""The limits of a project that no setting of the instance changes; None for no limit."""

FOR_A_JOB: tuple[Quota, ...] = ("queued_jobs", "gpu_seconds_per_month", "stored_bytes")
"""The quotas that a project needs room in to post a job."""


class QuotaExceeded(Exception):
    """The project would exceed its quota."""

    def __init__(self, quota: Quota, limit: int, used: float) -> None:
        remedy = f"{_REMEDIES[quota]}, or ask the operator for a higher limit"
        super().__init__(f"this project's limit of {quota} is {limit}, and {used:.0f} are used; {remedy}")
        self.quota = quota
        self.limit = limit
        self.used = used


def limit_of(project: Project, quota: Quota, settings: Settings) -> int | None:
    """Return the limit of a project; None for no limit."""
    own: int | None = project.quotas.get(quota)
    default: int | None = getattr(settings, f"quota_{quota}", DEFAULTS.get(quota))
    return default if own is None else own


def change(session: Session, project: Project, limits: Mapping[Quota, int | None], settings: Settings) -> None:
    """Set a project's own limits; None resets a limit to the instance's."""
    merged: dict[str, int | None] = {**project.quotas, **dict(limits.items())}
    project.quotas = {quota: merged[quota] for quota in QUOTAS if merged.get(quota) is not None}
    session.flush()
    audit.record(session, project.id, "project.change", project.id, quotas=dict(project.quotas))
    if "gpu_seconds_per_month" in limits:
        watch_gpu_time(session, settings, project.id)


def used(session: Session, project: Project, quota: Quota) -> float | None:
    """Return what a project uses of a quota; None for a quota that is counted per key."""
    match quota:
        case "queued_jobs":
            return usage.count_jobs(session, project.id, Job.status == "queued", *POSTED)
        case "waiting_tasks":
            return usage.count_waiting_tasks(session, project.id)
        case "running_jobs":
            return usage.count_jobs(session, project.id, *AT_WORK)
        case "gpu_seconds_per_month":
            month = usage.days_of(*usage.month_of(moment(session)))
            return usage.gpu_seconds(session, [project.id], month)[project.id]
        case "stored_bytes":
            return usage.stored_bytes(session, project.id)
        case "keys":
            return usage.count_keys(session, project.id)
        case "streams_per_key":
            return None


def check(session: Session, project_id: str, settings: Settings, *quotas: Quota) -> None:
    """Check that what this transaction has added is within the project's limits. Raises QuotaExceeded."""
    session.flush()
    project = session.get_one(Project, project_id)
    own = {quota: limit_of(project, quota, settings) for quota in quotas}
    limits = {quota: limit for quota, limit in own.items() if limit is not None}
    if not limits:
        return
    take_turn(session, project_id)
    for quota, limit in limits.items():
        if (count := used(session, project, quota) or 0) > limit:
            raise QuotaExceeded(quota, limit, count)


def take_turn(session: Session, project_id: str) -> None:
    """Wait for other transactions that add to this project, so that what they have committed is counted; from here to
    the end of this one they wait."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def lets_run(count: ColumnElement[int], default: int | None) -> ColumnElement[bool]:
    """Whether a job of a project with `count` running jobs may be claimed now: the limit of running jobs is not
    reached, and the GPU time is not used up. `default` is the instance's limit of running jobs."""
    limit = func.coalesce(Project.quotas["running_jobs"].as_integer(), default)
    has_time = func.coalesce(Project.out_of_gpu_until <= now(), True)
    return and_(func.coalesce(count < limit, True), has_time, Project.deleted_at.is_(None))


def is_over(session: Session, project_id: str, default: int | None) -> bool:
    """Whether a project has more running jobs than it may, this transaction's claim included. Others who claim of it
    wait until this transaction ends."""
    project = session.get_one(Project, project_id)
    limit: int | None = project.quotas.get("running_jobs", default)
    if limit is None:
        return False
    take_turn(session, project_id)
    return usage.count_jobs(session, project_id, *AT_WORK) > limit


def watch_gpu_time(session: Session, settings: Settings, project_id: str | None = None) -> None:
    """Let no more jobs be claimed of projects that have used up the GPU time of this month, and of the others again; or
    look at this one alone."""
    month = usage.month_of(moment(session))
    watched = select(Project) if project_id is None else select(Project).where(Project.id == project_id)
    projects = session.scalars(watched).all()
    limits = {project.id: limit_of(project, "gpu_seconds_per_month", settings) for project in projects}
    limited = [each for each, limit in limits.items() if limit is not None]
    spent = usage.gpu_seconds(session, limited, usage.days_of(*month))
    for project in projects:
        limit = limits[project.id]
        until = month[1] if limit is not None and spent[project.id] >= limit else None
        if until != project.out_of_gpu_until:
            session.execute(update(Project).where(Project.id == project.id).values(out_of_gpu_until=until))
