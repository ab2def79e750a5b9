"""Places for requests that wait for something outside the database, of which each project has a share.

The object store, a name server or a client may take as long as it likes. A request that waits for one holds a place;
beyond its project's share, or beyond all places, a request is refused with 503, so that the requests of one project
delay no others.
"""

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

PATIENCE_SECONDS = 2.0
"""Time for which a request waits for a place, where places are free again soon when all is well."""
WAITING_PER_PLACE = 4
"""Requests of a project that wait for a place, for each place of its share."""
RETRY_SECONDS = 5
"""Seconds after which a refused request may be sent again."""

# Per process: all places, and the share of one project.
STORE, STORE_SHARE = 32, 8
CARRIERS, CARRIERS_SHARE = 4, 2
NAMES, NAMES_SHARE = 64, 16
STREAMS, STREAMS_SHARE = 200, 50
POLLS, POLLS_SHARE = 400, 100
TRANSFERS, TRANSFERS_SHARE = 256, 64


class NoPlace(Exception):
    """The project has its share of places, or all places are taken; the message says which, and what to do."""


class Places:
    """A number of places for one kind of wait. All methods but `free` belong to the thread of the event loop.

    Requests get places in the order in which they ask, but for those whose project has its share already.
    """

    def __init__(self, total: int, share: int, *, of: str, instead: str = "") -> None:
        self._total = total
        self._share = share
        self._of = of
        self._instead = instead
        self._taken: Counter[str] = Counter()
        self._waiting: OrderedDict[asyncio.Future[None], str] = OrderedDict()

    def free(self, project_id: str | None = None) -> int:
        """Count the places that are free for a project; by default, those that are free at all."""
        free = self._total - self._taken.total()
        return free if project_id is None else min(free, self._share - self._taken[project_id])

    @contextmanager
    def at_once(self, project_id: str) -> Iterator[None]:
        """Hold a place while the block runs. Raises NoPlace where none is free now."""
        if self.free(project_id) < 1:
            raise self._refusal(project_id)
        self._taken[project_id] += 1
        try:
            yield
        finally:
            self.give_back(project_id)

    @asynccontextmanager
    async def soon(self, project_id: str, *, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold a place while the block runs. Raises NoPlace where none is free within `seconds`, by default
        PATIENCE_SECONDS; infinity waits as long as it takes."""
        await self.take(project_id, seconds=seconds)
        try:
            yield
        finally:
            self.give_back(project_id)

    async def take(self, project_id: str, *, seconds: float | None = None) -> None:
        """Take a place, to be given back with `give_back`. Raises NoPlace as `soon` does."""
        seconds = PATIENCE_SECONDS if seconds is None else seconds
        if self.free(project_id) > 0:
            self._taken[project_id] += 1
            return
        crowd = sum(waiting == project_id for waiting in self._waiting.values())
        if seconds < math.inf and crowd >= WAITING_PER_PLACE * self._share:
            raise self._refusal(project_id)
        mine = asyncio.get_running_loop().create_future()
        self._waiting[mine] = project_id
        try:
            async with asyncio.timeout(seconds if seconds < math.inf else None):
                await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():  # the place has come in the moment in which the wait ended
                self.give_back(project_id)
            if isinstance(error, TimeoutError):
                raise self._refusal(project_id) from None
            raise
        finally:
            self._waiting.pop(mine, None)

    def give_back(self, project_id: str) -> None:
        """Free a place, for the first request that may have it."""
        self._taken[project_id] -= 1
        if not self._taken[project_id]:
            del self._taken[project_id]
        for waiter, waiting in self._waiting.items():
            if not waiter.done() and self.free(waiting) > 0:
                self._taken[waiting] += 1
                waiter.set_result(None)
                return

    def _refusal(self, project_id: str) -> NoPlace:
        if self._taken[project_id] >= self._share:
            reason = f"this project has its share of {self._of}, {self._share} at once in this process"
        else:
            reason = f"this process has as many {self._of} as it may, {self._total} at once"
        return NoPlace(f"{reason}; {self._instead}try again in a moment")


@dataclass(frozen=True)
class AllPlaces:
    """The places of one API process, per kind of wait."""

    store: Places = field(
        default_factory=lambda: Places(STORE, STORE_SHARE, of="requests that read or write the object store")
    )
    """Threads that speak with the object store. They are not those that speak with the database."""
    carriers: Places = field(
        default_factory=lambda: Places(CARRIERS, CARRIERS_SHARE, of="uploads that are begun or completed")
    )
    """Of these threads, those that write to the database in the same step: each may hold a connection to it."""
    names: Places = field(default_factory=lambda: Places(NAMES, NAMES_SHARE, of="look-ups of host names"))
    """Threads that look a host name up. They last as long as the system's resolver, which may be longer than the
    request."""
    streams: Places = field(
        default_factory=lambda: Places(
            STREAMS, STREAMS_SHARE, of="streams of events and logs", instead="read without following, or "
        )
    )
    """Streams of events and logs."""
    polls: Places = field(
        default_factory=lambda: Places(
            POLLS, POLLS_SHARE, of="requests that wait for a job", instead="ask without wait, or "
        )
    )
    """Requests that wait for a change of a job."""
    transfers: Places = field(
        default_factory=lambda: Places(TRANSFERS, TRANSFERS_SHARE, of="files that are sent or received")
    )
    """Files on their way to or from a client, which may be slow; each one received has a file in the spool folder."""
