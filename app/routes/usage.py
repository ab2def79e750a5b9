"""Usage of the project of the key."""

from datetime import time, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from app import schemas
from app.http.authentication import ProjectId, needs
from app.http.dependencies import Moment, Reading
from app.http.problems import InvalidParameter, problems
from app.platform.database import moment
from app.projects import usage
from core.schema.validation import FieldError

router = APIRouter(tags=["usage"], dependencies=[needs("jobs:read")])

_LONGEST = timedelta(days=731)


@router.get("/usage", responses=problems(InvalidParameter))
def get_usage(
    project_id: ProjectId,
    session: Reading,
    since: Annotated[
        Moment | None,
        Query(
            alias="from",
            description="Begin of the time: the begin of a day in UTC; by default that of the first of this month.",
        ),
    ] = None,
    until: Annotated[
        Moment | None, Query(alias="to", description="End of the time: the begin of a day in UTC; by default now.")
    ] = None,
    group_by: Annotated[
        schemas.GroupBy | None, Query(description="Group the time by this as well. Days and months are those of UTC.")
    ] = None,
) -> schemas.Usage:
    """Get the usage of the project: jobs by status, worker time and GPU time, stored bytes."""
    at = moment(session)
    for name, given in (("from", since), ("to", until)):
        if given and given.time() != time.min:
            detail = f"usage is kept by the day: choose the begin of a day in UTC, such as {given:%Y-%m-%d}T00:00:00Z"
            raise InvalidParameter([FieldError(pointer=f"/{name}", code="not_a_day", detail=detail)])
    since, until = since or usage.month_of(at)[0], until or at
    if not timedelta(0) <= until - since <= _LONGEST:
        detail = f"choose a time from 0 to {_LONGEST.days} days after `from`, which is {since.isoformat()}"
        raise InvalidParameter([FieldError(pointer="/to", code="out_of_range", detail=detail)])
    days = usage.days_of(since, until)
    amounts = usage.spent(session, project_id, days)
    whole = usage.total(amounts, days.since)
    return schemas.Usage(
        object="usage",
        since=since,
        until=until,
        jobs=usage.jobs_by_status(session, project_id, days),
        worker_seconds=whole.worker_seconds,
        gpu_seconds=whole.gpu_seconds,
        stored_bytes=usage.stored_bytes(session, project_id),
        groups=[
            schemas.UsageGroup(
                group=each.group,
                jobs=each.jobs,
                worker_seconds=each.worker_seconds,
                gpu_seconds=each.gpu_seconds,
            )
            for each in (usage.grouped(amounts, days.since, group_by) if group_by else [])
        ],
    )
