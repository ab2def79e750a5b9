"""A job's history: as a list, or as a stream of server-sent events that can be resumed."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from app import jobs, quotas, reading, schemas, tables
from app.auth import TheCaller, needs
from app.database import AWAY
from app.dependencies import JobId, Once, Service, TheService
from app.errors import InvalidParameter, NotFound, QuotaExceeded, TooManyStreams, problems
from app.keys import Caller
from app.routes import answer
from app.routes.jobs import the_job
from app.watch import Watch
from core.events import Stamped

router = APIRouter(tags=["jobs"])

_PING_SECONDS = 15


@router.get(
    "/jobs/{job_id}/events",
    response_model=schemas.Page[Stamped],
    dependencies=[needs("jobs:read"), Once],
    responses={
        200: {
            "description": "The list; or, with `Accept: text/event-stream`, each event as it comes (`id` is its seq), "
            "`progress` messages without an id in between, and `end` after the last one.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(NotFound, InvalidParameter, QuotaExceeded, TooManyStreams),
    },
)
async def get_events(
    job_id: JobId,
    request: Request,
    caller: TheCaller,
    service: TheService,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events after this seq.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events in one part of the list.")] = 100,
    last_event_id: Annotated[int, Header(ge=0, le=2**31 - 1, description="Where a stream goes on.")] = 0,
) -> Response:
    """Read the history of a job, or follow it."""
    job, part = await run_sync(_read, service, caller.project_id, job_id, after, limit)
    if "text/event-stream" not in request.headers.get("accept", ""):
        return answer(_page(part))
    if service.watch.streams >= service.settings.max_streams:
        detail = "this process serves as many event streams as it may; try again, or poll the list"
        raise TooManyStreams(detail, headers={"Retry-After": "5"})
    await run_sync(_check_streams, service, caller)
    return StreamingResponse(
        _stream(service, caller, job.id, max(after, last_event_id)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _stream(service: Service, caller: Caller, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Send events until the job has ended, the stream is old or the server stops; the last two are resumed."""
    watch = service.watch
    closes_at = time.monotonic() + service.settings.max_stream_seconds
    watch.streams += 1
    watch.streams_of[caller.key_id] += 1
    try:
        yield format_sse_event(retry=3000)
        while _may_go_on(watch, closes_at):
            try:
                job, part = await run_sync(_read, service, caller.project_id, job_id, after, 100)
            except AWAY:
                # A browser that is cut off and then refused does not come back.
                await asyncio.sleep(service.settings.watch_seconds)
                yield format_sse_event(comment="the database is away")
                continue
            for event in _show(part):
                after = event.seq
                yield format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(after))
            # What came between the look at the job and that at its history makes the former old.
            if part.has_more or (part.rows and part.rows[-1].seq > job.event_seq):
                continue
            if job.status in jobs.TERMINAL:
                yield format_sse_event(data_str=f'{{"status": "{job.status}"}}', event="end")
                return
            if job.progress:
                progress = schemas.Progress.model_validate(job.progress)
                yield format_sse_event(data_str=progress.model_dump_json(), event="progress")
            while not await watch.change(job_id, job.version, timeout=_PING_SECONDS) and _may_go_on(watch, closes_at):
                yield format_sse_event(comment="ping")
    finally:
        watch.streams -= 1
        watch.streams_of[caller.key_id] -= 1
        if not watch.streams_of[caller.key_id]:
            del watch.streams_of[caller.key_id]


def _may_go_on(watch: Watch, closes_at: float) -> bool:
    return not watch.stopping and time.monotonic() < closes_at


def _check_streams(service: Service, caller: Caller) -> None:
    with service.database.reading() as session:
        project = session.get_one(tables.Project, caller.project_id)
    limit = quotas.limit_of(project, "streams_per_key", service.settings)
    count = service.watch.streams_of[caller.key_id] + 1
    if limit is not None and count > limit:
        raise quotas.QuotaExceeded("streams_per_key", limit, count)


def _read(
    service: Service, project_id: str, job_id: str, after: int, limit: int
) -> tuple[tables.Job, reading.Part[tables.Event]]:
    with service.database.reading() as session:
        job = the_job(session, project_id, job_id)
        return job, reading.list_events(session, job_id, after=after, limit=limit)


def _page(part: reading.Part[tables.Event]) -> schemas.Page[Stamped]:
    events = _show(part)
    first, last = (str(events[0].seq), str(events[-1].seq)) if events else (None, None)
    return schemas.Page(object="list", data=events, has_more=part.has_more, first_id=first, last_id=last)


def _show(part: reading.Part[tables.Event]) -> list[Stamped]:
    return [
        Stamped(seq=event.seq, created_at=event.created_at, type=event.type, data=event.data) for event in part.rows
    ]
