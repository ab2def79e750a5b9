"""A job's attempts: who had it, what came of it, and what was logged."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from app import jobs, reading, schemas, tables
from app.auth import ProjectId, needs
from app.dependencies import JobId, Once, Reading, Service, TheService
from app.errors import InvalidParameter, NoLog, NotFound, StoreUnavailable, TooManyStreams, problems
from app.ownership import log_key
from app.routes.jobs import the_job
from app.storage import ObjectStore

router = APIRouter(tags=["jobs"])

_LOOK_SECONDS = 1.0
"""How often a log that is followed is looked at: its growth is no change of the job."""


@router.get(
    "/jobs/{job_id}/attempts",
    responses=problems(NotFound, InvalidParameter),
    dependencies=[needs("jobs:read"), Once],
)
def list_attempts(
    job_id: JobId,
    project_id: ProjectId,
    session: Reading,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only attempts after this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100, description="Attempts in one part.")] = 20,
) -> schemas.Page[schemas.Attempt]:
    """List a job's attempts, the first one first."""
    part = reading.list_attempts(session, the_job(session, project_id, job_id).id, after=after, limit=limit)
    shown = [_show(attempt) for attempt in part.rows]
    first, last = (str(shown[0].number), str(shown[-1].number)) if shown else (None, None)
    return schemas.Page(object="list", data=shown, has_more=part.has_more, first_id=first, last_id=last)


@router.get(
    "/jobs/{job_id}/logs",
    response_class=StreamingResponse,
    dependencies=[needs("jobs:read"), Once],
    responses={
        200: {"description": "The log.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(NotFound, NoLog, InvalidParameter, StoreUnavailable, TooManyStreams),
    },
)
async def get_logs(
    job_id: JobId,
    project_id: ProjectId,
    service: TheService,
    attempt: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="Of this attempt; by default of the last one that has a log.")
    ] = None,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only so many lines from the end.")] = None,
    *,
    follow: Annotated[bool, Query(description="Go on with what comes, further attempts included, to the end.")] = False,
) -> Response:
    """Read what the training process wrote for people, and what its supervisor did. It outlives the worker."""
    job, attempts = await run_sync(_read, service, project_id, job_id)
    logged = [each for each in attempts if each.log_parts and attempt in (None, each.epoch)]
    if not logged and not (follow and job.status not in jobs.TERMINAL):
        of = "this job" if attempt is None else f"attempt {attempt} of this job"
        raise NoLog(f"{of} has no log{'' if job.status in jobs.TERMINAL else ' yet'}; the job is {job.status}")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    media_type = "text/plain; charset=utf-8"
    if not follow:
        content = _content(service.store, logged[-1], tail=tail)
        return StreamingResponse(content, media_type=media_type, headers=headers)
    if service.watch.streams >= service.settings.max_streams:
        detail = "this process serves as many streams as it may; try again, or read without follow"
        raise TooManyStreams(detail, headers={"Retry-After": "5"})
    begin = logged[-1] if logged else None
    stream = _follow(service, project_id, job_id, begin, only=attempt, tail=tail)
    return StreamingResponse(stream, media_type=media_type, headers=headers)


async def _follow(
    service: Service,
    project_id: str,
    job_id: str,
    begin: tables.Attempt | None,
    *,
    only: int | None,
    tail: int | None,
) -> AsyncIterator[bytes]:
    """Send what there is and what comes, until the job has ended or the server stops."""
    service.watch.streams += 1
    try:
        epoch, part = 0, 0
        if begin:
            epoch, part = begin.epoch, begin.log_parts
            for chunk in await run_sync(lambda: list(_content(service.store, begin, tail=tail))):
                yield chunk
        while not service.watch.stopping:
            job, attempts = await run_sync(_read, service, project_id, job_id)
            for attempt in attempts:
                if attempt.epoch < epoch or only not in (None, attempt.epoch):
                    continue
                part = part if attempt.epoch == epoch else 0
                epoch = attempt.epoch
                while part < attempt.log_parts:
                    part += 1
                    key = log_key(job_id, epoch, part)
                    yield await run_sync(_fetch, service.store, key)
            if job.status in jobs.TERMINAL:
                return
            await service.watch.change(job_id, job.version, timeout=_LOOK_SECONDS)
    finally:
        service.watch.streams -= 1


def _read(service: Service, project_id: str, job_id: str) -> tuple[tables.Job, Sequence[tables.Attempt]]:
    with service.database.reading() as session:
        job = the_job(session, project_id, job_id)
        return job, reading.all_attempts(session, job.id)


def _content(store: ObjectStore, attempt: tables.Attempt, *, tail: int | None) -> Iterator[bytes]:
    """Read a log, or its last lines: then from the end, and no more of it than is needed."""
    keys = [log_key(attempt.job_id, attempt.epoch, part) for part in range(1, attempt.log_parts + 1)]
    if tail is None:
        for key in keys:
            yield from store.read(key)
        return
    end = b""
    while keys and end.count(b"\n") <= tail:
        end = _fetch(store, keys.pop()) + end
    lines = end.splitlines(keepends=True)
    yield b"".join(lines[max(len(lines) - tail, 0) :])


def _fetch(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.read(key))


def _show(attempt: tables.Attempt) -> schemas.Attempt:
    return schemas.Attempt.model_validate(
        {
            "object": "attempt",
            "number": attempt.epoch,
            "worker": attempt.worker,
            "device": attempt.device,
            "started_at": attempt.started_at,
            "ended_at": attempt.ended_at,
            "outcome": attempt.outcome,
            "cause": attempt.cause,
            "resumed_step": attempt.resumed_step,
            "log_size": attempt.log_size,
        }
    )
