"""Queued jobs by their requirements, and the reasons why no living worker could take them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, SQLColumnExpression, literal, select, tuple_
from sqlalchemy.orm import Session

from app import tasks
from app.assets import inspections
from app.jobs import workers
from app.jobs.requirements import Capacity, Requirements, read_key
from app.platform.database import seconds_from_now
from app.schemas import Waiting
from app.tables import Job

_MOST_SENTENCES = 5


def _next(
    column: SQLColumnExpression[str], after: ColumnElement[str], *within: tuple[Any, Any]
) -> ColumnElement[str | None]:
    """The value of a column that follows another one among the queued jobs, at a place in the index of jobs to claim.

    The place is bounded by comparing rows of values, as in `app.platform.paging`: no planner then reads another index.
    """
    columns = Job.status, *(each for each, _ in within)
    # SQLite compares a row of values with an index only where the values have no type of a column.
    values = literal("queued"), *(value.concat("") for _, value in within)
    # Past all rows with the value `after`, which SQLite would read where only that were compared: no id and no key of
    # requirements begins with another one.
    beyond = tuple_(*columns, column) >= tuple_(*values, after.concat(" ")), tuple_(*columns) <= tuple_(*values)
    return select(column).where(*beyond).order_by(*columns, column).limit(1).scalar_subquery()


def _queued_groups() -> CTE:
    """The projects that have queued jobs, and of each what its jobs require: one look into the index for each such
    group, however many jobs or projects there are."""
    first = select(_next(Job.project_id, literal("")).label("project_id"))
    projects = first.cte("queued_projects", recursive=True)
    following = _next(Job.project_id, projects.c.project_id)
    projects = projects.union_all(select(following).where(projects.c.project_id.is_not(None)))
    name = projects.c.project_id
    least = _next(Job.requires, literal(""), (Job.project_id, name)).label("requires")
    groups = select(name, least).where(name.is_not(None)).cte("queued_groups", recursive=True)
    name = groups.c.project_id
    following = _next(Job.requires, groups.c.requires, (Job.project_id, name))
    return groups.union_all(select(name, following).where(groups.c.requires.is_not(None)))


# Built once: every claim asks it.
QUEUED_GROUPS = _queued_groups()
"""The groups of queued jobs, by `project_id` and `requires`; a group whose `requires` is null is none."""


def required(session: Session, *, seconds: float) -> Sequence[Requirements]:
    """List what jobs require that have waited for longer than `seconds`."""
    group = QUEUED_GROUPS.c
    old = Job.status == "queued", Job.shards_left == 0, Job.updated_at < seconds_from_now(-seconds)
    one = select(Job.id).where(Job.project_id == group.project_id, Job.requires == group.requires, *old).limit(1)
    found = select(group.requires).distinct().where(one.correlate(QUEUED_GROUPS).scalar_subquery().is_not(None))
    return [read_key(key) for key in session.scalars(found)]


def reasons(session: Session, jobs: Iterable[Job]) -> Mapping[str, Waiting]:
    """Map the id of each queued job that no living worker can run to the reason why it waits."""
    queued = {job.id: job.requires for job in jobs if job.status == "queued"}
    if not queued:
        return {}
    alive = workers.capacities(session)
    why = {key: _reason(read_key(key), alive) for key in set(queued.values())}
    return {job_id: reason for job_id, key in queued.items() if (reason := why[key])}


def unserved(session: Session) -> Sequence[str]:
    """Say what waits that no living worker could take, in a few sentences."""
    keys = session.scalars(select(QUEUED_GROUPS.c.requires).distinct()).all()
    jobs = [read_key(key) for key in sorted(key for key in keys if key is not None)]
    has_files = tasks.have_waited(session, inspections.KINDS, seconds=0)
    # First what waits: mostly it is nothing.
    if not (jobs or has_files):
        return []
    alive = workers.capacities(session)
    if not alive:
        what = " and ".join([*(["jobs"] if jobs else []), *(["inspections of files"] if has_files else [])])
        return [f"{what} wait, and {_no_worker(Requirements())}"]
    found = [f"a job waits: {reason.message}" for each in jobs if (reason := _reason(each, alive))]
    return found[:_MOST_SENTENCES]


def _reason(requirements: Requirements, alive: Iterable[Capacity]) -> Waiting | None:
    lacks: list[Sequence[str]] = [capacity.lacks(requirements) for capacity in alive]
    if not lacks:
        return Waiting(code="no_worker", message=_no_worker(requirements))
    if not all(lacks):
        return None
    nearest = min(lacks, key=len)
    told = f"it needs {requirements}, and no living worker has that; the nearest one {' and '.join(nearest)}"
    return Waiting(code="no_suitable_worker", message=told)


def _no_worker(requirements: Requirements) -> str:
    needed = str(requirements)
    return f"no worker is alive; start one{f' that has {needed}' if needed else ' (`temper worker`)'}"
