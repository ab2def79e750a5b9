"""A job's attempts: their workers, outcomes and logs."""

import asyncio
import math
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import aclosing, closing
from typing import Annotated, NamedTuple

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from app import schemas, tables
from app.http.authentication import ProjectId, TheCaller, needs
from app.http.dependencies import JobId, Reading, Service, TheService, pieces, stored
from app.http.patterns import LOG_PLACE
from app.http.problems import (
    InvalidParameter,
    NoLog,
    NotFound,
    QuotaExceeded,
    StoreUnavailable,
    TooManyAtOnce,
    problems,
)
from app.jobs import moves, queries, watch
from app.jobs.leases import log_key
from app.platform.database import AWAY
from app.routes import streams
from app.routes.jobs import the_job
from app.routes.transfers import send
from app.storage import ObjectStore, StorageUnavailable
from core.schema.validation import FieldError

router = APIRouter(tags=["jobs"])

_TEXT = "text/plain; charset=utf-8"
_LOOK_SECONDS = 1.0
"""Interval at which a followed log is read: its growth does not change the job."""


@router.get(
    "/jobs/{job_id}/attempts",
    responses=problems(NotFound, InvalidParameter),
    dependencies=[needs("jobs:read")],
)
def list_attempts(
    job_id: JobId,
    project_id: ProjectId,
    session: Reading,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only attempts after this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100, description="Attempts in one page.")] = 20,
) -> schemas.Page[schemas.Attempt]:
    """List a job's attempts, oldest first."""
    part = queries.list_attempts(session, the_job(session, project_id, job_id).id, after=after, limit=limit)
    shown = [_show(attempt) for attempt in part.rows]
    first, last = (str(shown[0].number), str(shown[-1].number)) if shown else (None, None)
    return schemas.Page(object="list", data=shown, has_more=part.has_more, first_id=first, last_id=last)


@router.get(
    "/jobs/{job_id}/logs",
    response_class=StreamingResponse,
    dependencies=[needs("jobs:read")],
    responses={
        200: {
            "description": "The log.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "headers": {
                "X-Log-Place": {
                    "description": "With follow: where in the job's logs this begins, as `after` takes it.",
                    "schema": {"type": "string"},
                }
            },
        },
        **problems(NotFound, NoLog, InvalidParameter, StoreUnavailable, QuotaExceeded, TooManyAtOnce),
    },
)
async def get_logs(
    job_id: JobId,
    caller: TheCaller,
    service: TheService,
    until_sent: streams.UntilSent,
    attempt: Annotated[
        int | None,
        Query(ge=1, le=2**31 - 1, description="The attempt; by default the last one that has a log."),
    ] = None,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only this number of lines from the end.")] = None,
    after: Annotated[
        str | None,
        Query(
            pattern=LOG_PLACE,
            description="With follow, go on behind this place: what X-Log-Place said, with the bytes that came since "
            "added to its second number. It takes the place of tail.",
        ),
    ] = None,
    *,
    follow: Annotated[bool, Query(description="Go on with what comes, further attempts included, to the end.")] = False,
) -> Response:
    """Read the log of an attempt: the output of the training process and the actions of its supervisor.

    A followed log ends with the job, or after the maximum duration of a stream, as streams of events do.
    """
    if after and not follow:
        detail = "`after` is only allowed with follow=true: add that, or leave `after` out"
        raise InvalidParameter([FieldError(pointer="/after", code="not_followed", detail=detail)])
    stream = await streams.begin(service, caller, until_sent) if follow else None
    job, attempts = await run_sync(_read, service, caller.project_id, job_id)
    logged = [each for each in attempts if each.log_parts and attempt in (None, each.attempt)]
    if not logged and not (follow and (after or job.status not in moves.TERMINAL)):
        of = "this job" if attempt is None else f"attempt {attempt} of this job"
        raise NoLog(f"{of} has no log{'' if job.status in moves.TERMINAL else ' yet'}; the job is {job.status}")
    if stream is None:
        content = _content(service.store, logged[-1]) if tail is None else _tail(service.store, logged[-1], tail)
        sent = await send(content, service, caller.project_id, until_sent)
        return StreamingResponse(sent, media_type=_TEXT, headers=streams.HEADERS)
    if after:
        place = _Place(*map(int, after.split(":")))
    elif logged:
        place = await stored(service, caller.project_id, _place, service.store, logged[-1], tail)
    else:
        place = _Place(attempt or 1, 0)
    # An unreachable object store must be reported before the answer has begun.
    with closing(_behind(service.store, attempts, place, attempt)) as content:
        await stored(service, caller.project_id, next, content, None)
    return StreamingResponse(
        _follow(stream, service, caller.project_id, job_id, place, only=attempt),
        media_type=_TEXT,
        headers={**streams.HEADERS, "X-Log-Place": f"{place.attempt}:{place.offset}"},
    )


class _Place(NamedTuple):
    """An offset in bytes from the beginning of an attempt's log; it counts on through the logs of later attempts."""

    attempt: int
    offset: int


async def _follow(
    stream: streams.Stream, service: Service, project_id: str, job_id: str, place: _Place, *, only: int | None
) -> AsyncIterator[bytes]:
    """Send the log so far and what is added to it, until the job has ended or the stream is stopped."""
    while True:
        try:
            job, attempts = await run_sync(_read, service, project_id, job_id)
            behind = _behind(service.store, attempts, place, only)
            async with aclosing(pieces(service, project_id, behind)) as content:
                async for piece in content:
                    place = _Place(place.attempt, place.offset + len(piece))
                    yield piece
        except (*AWAY, StorageUnavailable):
            await asyncio.sleep(watch.WATCH_SECONDS)
        except NotFound:
            # The job was deleted: end the stream; the next request gets 404.
            return
        else:
            if job.status in moves.TERMINAL:
                return
            await stream.watch.change(job_id, job.version, timeout=_LOOK_SECONDS)
        if not stream.may_go_on:
            return


def _read(service: Service, project_id: str, job_id: str) -> tuple[tables.Job, Sequence[tables.Attempt]]:
    with service.database.reading() as session:
        job = the_job(session, project_id, job_id)
        return job, queries.all_attempts(session, job.id)


def _behind(
    store: ObjectStore, attempts: Sequence[tables.Attempt], place: _Place, only: int | None
) -> Generator[bytes]:
    """Read what follows a place: of this attempt and later ones, or only of one."""
    skipped = place.offset
    for attempt in attempts:
        if attempt.attempt < place.attempt or only not in (None, attempt.attempt):
            continue
        if skipped == 0:
            yield from _content(store, attempt)
        elif skipped < attempt.log_size:
            missing = attempt.log_size - skipped
            yield _end(store, attempt, size=missing)[-missing:]
        skipped = max(skipped - attempt.log_size, 0)


def _place(store: ObjectStore, attempt: tables.Attempt, tail: int | None) -> _Place:
    """Find the place of the last lines of a log, or of its beginning."""
    if tail is None:
        return _Place(attempt.attempt, 0)
    return _Place(attempt.attempt, attempt.log_size - sum(map(len, _tail(store, attempt, tail))))


def _content(store: ObjectStore, attempt: tables.Attempt) -> Generator[bytes]:
    for key in _keys(attempt):
        yield from store.read(key)


def _tail(store: ObjectStore, attempt: tables.Attempt, lines: int) -> Generator[bytes]:
    found = _end(store, attempt, lines=lines).splitlines(keepends=True)
    yield b"".join(found[max(len(found) - lines, 0) :])


def _end(store: ObjectStore, attempt: tables.Attempt, *, lines: float = math.inf, size: float = math.inf) -> bytes:
    """Read a log part by part from its end, until this number of lines or bytes is read."""
    parts: list[bytes] = []
    for key in reversed(_keys(attempt)):
        parts.append(_fetch(store, key))
        lines -= parts[-1].count(b"\n")
        size -= len(parts[-1])
        if lines < 0 or size <= 0:
            break
    return b"".join(reversed(parts))


def _keys(attempt: tables.Attempt) -> list[str]:
    return [log_key(attempt.job_id, attempt.attempt, part) for part in range(1, attempt.log_parts + 1)]


def _fetch(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.read(key))


def _show(attempt: tables.Attempt) -> schemas.Attempt:
    return schemas.Attempt.model_validate(
        {
            "object": "attempt",
            "number": attempt.attempt,
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
