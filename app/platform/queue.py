"""The doorbell: after a commit, the workers are told through a message broker that there is work.

A message carries no work, only the call to look for some. So losing it, or getting it five times, changes nothing: the
database is the queue, and every worker looks there by itself now and then. Ringing takes no time of a request: a thread
does it, gives a broker that is away about a second, and then leaves it alone for a while. Without a broker
(TEMPER_BROKER_URL is empty) nothing is rung.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Thread
from time import monotonic
from types import MappingProxyType

from sqlalchemy import event
from sqlalchemy.orm import Session

from app.platform.settings import ResourceClass, Settings

log = logging.getLogger(__name__)

HEARD: Mapping[ResourceClass, tuple[ResourceClass, ...]] = MappingProxyType({"gpu": ("gpu", "cpu"), "cpu": ("cpu",)})
"""The queues that a worker of a class listens to. One with a GPU can do what one without can."""
_MOST_WAITING = 1000
_OPEN_SECONDS = 10.0
"""Time without calls to a broker that failed."""


class Doorbell:
    """Rings for workers, from a thread of its own, as far as there is a broker and it answers."""

    def __init__(self, broker_url: str) -> None:
        self.is_there = bool(broker_url)
        self._rings: Queue[ResourceClass | None] = Queue(_MOST_WAITING)
        self._broker_url = broker_url
        self._thread: Thread | None = None
        self.is_open = False
        """Whether the circuit is open: the broker has failed, and is left alone for a while."""

    def start(self) -> None:
        """Begin; what was rung before is heard now."""
        if self.is_there:
            self._thread = Thread(target=self._work, name="doorbell", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, within what one ring may take. What has not been rung yet is left: the workers look by themselves."""
        if self._thread:
            with suppress(Empty):
                while True:
                    self._rings.get_nowait()
            self._rings.put(None)
            self._thread.join(timeout=5)

    def ring(self, resource: ResourceClass) -> None:
        """Have it rung soon. This never waits: where very many rings wait already, one more would change nothing."""
        if self.is_there:
            with suppress(Full):
                self._rings.put_nowait(resource)

    def ring_after_commit(self, session: Session, resource: ResourceClass = "cpu", *, shards: int = 0) -> None:
        """Have it rung when the session's transaction is committed, for a worker of this class, or one for each
        shard."""

        def ring(_: Session) -> None:
            for _ring in range(max(shards, 1)):
                self.ring(resource)

        event.listen(session, "after_commit", ring, once=True)

    def _work(self) -> None:
        """Ring. The circuit is open after a failure: rings go nowhere until the broker gets another chance."""
        from app.platform.broker import AWAY, Line

        line = Line(self._broker_url)
        closes_at = 0.0
        while (resource := self._rings.get()) is not None:
            if self.is_open and monotonic() < closes_at:
                continue
            try:
                line.ring(resource)
            except AWAY as error:
                if not self.is_open:
                    log.warning("the queue is out of reach, and workers find jobs by polling alone: %s", error)
                self.is_open, closes_at = True, monotonic() + _OPEN_SECONDS
            else:
                if self.is_open:
                    log.info("the queue is back")
                self.is_open = False
        line.hang_up()


def open_doorbell(settings: Settings) -> Doorbell:
    """Make the doorbell that the settings speak of."""
    return Doorbell(settings.broker_url)
