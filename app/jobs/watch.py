"""Wait for changes of jobs with one poller per API process, without a thread or connection for each waiting client."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field

from anyio.to_thread import run_sync

from app.jobs.queries import versions
from app.platform.database import AWAY, Database
from app.platform.outages import Outage

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
"""Seconds between two looks of an API process for changes in the jobs that clients wait for."""


@dataclass(frozen=True, eq=False)
class _Waiter:
    job_id: str
    version: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Watch:
    """The poller. `streams_of` counts the streams that it feeds, by key; `stopping` says that all waiting must end."""

    def __init__(self, database: Database) -> None:
        self.streams_of: Counter[str] = Counter()
        self.stopping = False
        self._database = database
        self._waiters: set[_Waiter] = set()

    @contextmanager
    def stream_of(self, key_id: str) -> Iterator[None]:
        """Count a stream for as long as the block runs."""
        self.streams_of[key_id] += 1
        try:
            yield
        finally:
            self.streams_of[key_id] -= 1
            if not self.streams_of[key_id]:
                del self.streams_of[key_id]

    async def change(self, job_id: str, version: int, *, timeout: float) -> bool:
        """Wait until the job is no longer of this version, and say whether that happened in time."""
        waiter = _Waiter(job_id, version)
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(0 if self.stopping else timeout):
                await waiter.changed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return not self.stopping

    async def run(self) -> None:
        """Poll for as long as the process lives."""
        outage = Outage(log, "cannot look for changes", "can look for changes again")
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            waiters = frozenset(self._waiters)
            if not waiters:
                continue
            try:
                current = await run_sync(self._read, {waiter.job_id for waiter in waiters})
            except AWAY:
                outage.lasts("the database is unavailable")
                continue
            outage.ends()
            for waiter in waiters:
                if current.get(waiter.job_id) != waiter.version:
                    waiter.changed.set()

    def stop(self) -> None:
        """Release all waiting requests, now and from now on."""
        self.stopping = True
        for waiter in self._waiters:
            waiter.changed.set()

    def _read(self, job_ids: Set[str]) -> dict[str, int]:
        with self._database.reading() as session:
            return versions(session, job_ids)
