"""A job's history: as a list, or as a stream of server-sent events that can be resumed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from app import schemas, tables
from app.http.authentication import TheCaller, needs
from app.http.dependencies import JobId, Service, TheService
from app.http.problems import InvalidParameter, NotFound, QuotaExceeded, TooManyAtOnce, problems
from app.jobs import moves, queries, waiting, watch
from app.platform.database import AWAY
from app.platform.paging import Part
from app.routes import answer, streams
from app.routes.jobs import the_job
from core.schema.events import Stamped

router = APIRouter(tags=["jobs"])

_PING_SECONDS = 15


@router.get(
    "/jobs/{job_id}/events",
    response_model=schemas.Page[Stamped],
    dependencies=[needs("jobs:read")],
    responses={
        200: {
            "description": "The list; or, with `Accept: text/event-stream`, each event as it comes (`id` is its seq), "
            "`progress` messages and `waiting` ones (while no worker could take the job) without an id in between, and "
            "`end` after the last one.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(NotFound, InvalidParameter, QuotaExceeded, TooManyAtOnce),
    },
)
async def get_events(
    job_id: JobId,
    request: Request,
    caller: TheCaller,
    service: TheService,
    until_sent: streams.UntilSent,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events after this seq.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events in one page.")] = 100,
    last_event_id: Annotated[
        int, Header(ge=0, le=2**31 - 1, description="Where a stream goes on; from its beginning if this is not in it.")
    ] = 0,
) -> Response:
    """Read the history of a job, or follow it."""
    is_stream = "text/event-stream" in request.headers.get("accept", "")
    stream = await streams.begin(service, caller, until_sent) if is_stream else None
    job, part, _ = await run_sync(_read, service, caller.project_id, job_id, after, limit)
    if stream is None:
        return answer(_page(part))
    return StreamingResponse(
        _tell(stream, service, caller.project_id, job.id, max(after, _known(job, last_event_id))),
        media_type="text/event-stream",
        headers=streams.HEADERS,
    )


def _known(job: tables.Job, last_event_id: int) -> int:
    """Return the last event that the caller has. An id beyond the history is of another one, such as the one before a
    backup was restored: then all events are sent."""
    return last_event_id if last_event_id <= job.event_seq else 0


async def _tell(
    stream: streams.Stream, service: Service, project_id: str, job_id: str, after: int
) -> AsyncIterator[bytes]:
    """Send events until the job has ended or the stream is stopped."""
    yield format_sse_event(retry=3000)
    told = None
    while stream.may_go_on:
        try:
            job, part, why = await run_sync(_read, service, project_id, job_id, after, 100)
        except AWAY:
            # A browser that is cut off and then refused does not come back.
            await asyncio.sleep(watch.WATCH_SECONDS)
            yield format_sse_event(comment="the database is away")
            continue
        except NotFound:
            # The job was deleted: end the stream; the next request gets 404.
            return
        for event in _show(part):
            after = event.seq
            yield format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(after))
        # Events that were added between the two queries make the first result outdated.
        if part.has_more or (part.rows and part.rows[-1].seq > job.event_seq):
            continue
        if job.status in moves.TERMINAL:
            yield format_sse_event(data_str=f'{{"status": "{job.status}"}}', event="end")
            return
        if job.progress:
            progress = schemas.Progress.model_validate(job.progress)
            yield format_sse_event(data_str=progress.model_dump_json(), event="progress")
        if why and why != told:
            yield format_sse_event(data_str=why.model_dump_json(), event="waiting")
        told = why
        while (
            not await stream.watch.change(job_id, job.version, timeout=min(_PING_SECONDS, stream.seconds_left))
            and stream.may_go_on
        ):
            yield format_sse_event(comment="ping")
            # Workers come and go without a change of the job.
            if job.status == "queued":
                break


def _read(
    service: Service, project_id: str, job_id: str, after: int, limit: int
) -> tuple[tables.Job, Part[tables.Event], schemas.Waiting | None]:
    with service.database.reading() as session:
        job = the_job(session, project_id, job_id)
        part = queries.list_events(session, job_id, after=after, limit=limit)
        return job, part, waiting.reasons(session, [job]).get(job.id)


def _page(part: Part[tables.Event]) -> schemas.Page[Stamped]:
    events = _show(part)
    first, last = (str(events[0].seq), str(events[-1].seq)) if events else (None, None)
    return schemas.Page(object="list", data=events, has_more=part.has_more, first_id=first, last_id=last)


def _show(part: Part[tables.Event]) -> list[Stamped]:
    return [
        Stamped(seq=event.seq, created_at=event.created_at, type=event.type, data=event.data) for event in part.rows
    ]
