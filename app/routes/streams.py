"""Limits on streams of events and logs: their number per key, and their duration."""

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends

from app import tables
from app.http.dependencies import Service
from app.jobs.watch import Watch
from app.projects import quotas
from app.projects.keys import Caller

MAX_STREAM_SECONDS = 900.0
"""A stream closes after this time, and the client resumes it where it was."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def _until_sent() -> AsyncIterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


UntilSent = Annotated[ExitStack, Depends(_until_sent, scope="request")]
"""Resources to close when the response has been sent or the client has disconnected."""


@dataclass(frozen=True)
class Stream:
    """A response that ends when it is complete or too old, or when the server stops; clients then resume it."""

    watch: Watch
    closes_at: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the stream closes because of its age."""
        return max(self.closes_at - time.monotonic(), 0.0)

    @property
    def may_go_on(self) -> bool:
        """Whether the stream is not too old and the server is not stopping."""
        return not self.watch.stopping and self.seconds_left > 0


async def begin(service: Service, caller: Caller, until_sent: ExitStack) -> Stream:
    """Count a stream until the response has been sent. Raises NoPlace, QuotaExceeded."""
    # Before anything is read: a refusal costs little.
    until_sent.enter_context(service.places.streams.at_once(caller.project_id))
    limit = await run_sync(_limit, service, caller)
    # No await from here on: no other request of the key can take the free place in between.
    watch = service.watch
    if limit is not None and (count := watch.streams_of[caller.key_id] + 1) > limit:
        raise quotas.QuotaExceeded("streams_per_key", limit, count)
    until_sent.enter_context(watch.stream_of(caller.key_id))
    return Stream(watch, time.monotonic() + MAX_STREAM_SECONDS)


def _limit(service: Service, caller: Caller) -> int | None:
    with service.database.reading() as session:
        project = session.get_one(tables.Project, caller.project_id)
    return quotas.limit_of(project, "streams_per_key", service.settings)
