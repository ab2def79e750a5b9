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
from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.platform.ids import new_id
from app.platform.settings import ResourceClass, Settings
from core.schema.spec import AnySpec

log = logging.getLogger(__name__)

LOOK_FOR_WORK = "look_for_work"
"""The one task there is."""
EXPIRES_SECONDS = 60
"""An older ring is not answered: by then every worker has looked by itself."""
HEARD: Mapping[ResourceClass, tuple[ResourceClass, ...]] = MappingProxyType({"gpu": ("gpu", "cpu"), "cpu": ("cpu",)})
"""The queues that a worker of a class listens to. One with a GPU can do what one without can."""
ON_THE_WIRE: Mapping[str, Any] = MappingProxyType(
    {
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_send_task_events": False,
    }
)
"""What both ends of the queue are agreed on, with KEY_PREFIX."""
KEY_PREFIX = "temper:"
"""What every key in the broker begins with: others may use it, too."""

AWAY = KombuError, RedisError, OSError
"""What is raised where the broker cannot be reached, or refuses."""

_IMPATIENT: Mapping[str, Any] = MappingProxyType(
    {
        "task_publish_retry": False,
        "broker_connection_timeout": 1,
        "broker_connection_max_retries": 0,
        "broker_connection_retry": False,
        "broker_pool_acquire_timeout": 1,
        "broker_transport_options": {
            "global_keyprefix": KEY_PREFIX,
            "socket_timeout": 1,
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "retry_on_timeout": False,
        },
    }
)
_MOST_WAITING = 1000
_MOST_UNHEARD = 100
"""Where so many rings wait in the broker, one more would wake nobody."""
_OPEN_SECONDS = 10.0
"""How long a broker that failed is left alone."""


def needs(gpus: int) -> ResourceClass:
    """Say which class of worker a job of so many GPUs needs: one process can run anywhere, several want a GPU each."""
    return "gpu" if gpus > 1 else "cpu"


class Doorbell:
    """Rings for workers, from a thread of its own, as far as there is a broker and it answers."""

    def __init__(self, broker_url: str) -> None:
        self.is_there = bool(broker_url)
        self._rings: Queue[ResourceClass | None] = Queue(_MOST_WAITING)
        self._line = Line(broker_url)
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

    def ring_after_commit(self, session: Session, spec: AnySpec | None = None, *, shards: int = 0) -> None:
        """Have it rung when the session's transaction is committed, for a worker that can do this, or one for each
        shard; without a spec, for any: a file is to be inspected."""
        resource = needs(getattr(spec, "gpus", 1))

        def ring(_: Session) -> None:
            for _ring in range(max(shards, 1)):
                self.ring(resource)

        event.listen(session, "after_commit", ring, once=True)

    def _work(self) -> None:
        """Ring. The circuit is open after a failure: rings go nowhere until the broker gets another chance."""
        closes_at = 0.0
        while (resource := self._rings.get()) is not None:
            if self.is_open and monotonic() < closes_at:
                continue
            try:
                self._line.ring(resource)
            except AWAY as error:
                if not self.is_open:
                    log.warning("the queue is out of reach, and workers find jobs by polling alone: %s", error)
                self.is_open, closes_at = True, monotonic() + _OPEN_SECONDS
            else:
                if self.is_open:
                    log.info("the queue is back")
                self.is_open = False
        self._line.hang_up()


class Line:
    """The way to the broker, kept open from ring to ring. It gives up within about a second, whatever the broker does.

    Its methods raise the errors of AWAY.
    """

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("temper", broker=broker_url, set_as_current=False)
        self._celery.conf.update(ON_THE_WIRE, **_IMPATIENT)
        self._open: Connection | None = None

    def ring(self, resource: ResourceClass) -> None:
        """Ring once, now; where the line was cut since the last time, over a new one."""
        was_open = self._open is not None
        try:
            self._ring(resource)
        except AWAY:
            self.hang_up()
            if not was_open:
                raise
            self.ring(resource)

    def waiting(self, resource: ResourceClass) -> int:
        """Count the rings that nobody has heard yet."""
        self._open = self._open or self._celery.connection_for_write()
        count: int = self._open.default_channel.queue_declare(resource).message_count
        return count

    def echo(self) -> None:
        """Send a message to nobody but ourselves, and take it back."""
        self._open = self._open or self._celery.connection_for_write()
        with self._open.SimpleQueue(f"echo-{new_id('msg')}", queue_opts={"auto_delete": True}) as queue:
            queue.put({})
            try:
                queue.get(timeout=1).ack()
            except Empty:
                raise TimeoutError("a message that was sent did not come back") from None
            finally:
                queue.queue.delete()

    def hang_up(self) -> None:
        """Close the connection; the next ring opens one."""
        if self._open:
            with suppress(*AWAY):
                self._open.close()
            self._open = None

    def _ring(self, resource: ResourceClass) -> None:
        if self.waiting(resource) < _MOST_UNHEARD:
            bell = self._celery.amqp.Producer(self._open)
            self._celery.send_task(LOOK_FOR_WORK, queue=resource, expires=EXPIRES_SECONDS, producer=bell)


def open_doorbell(settings: Settings) -> Doorbell:
    """Make the doorbell that the settings speak of."""
    return Doorbell(settings.broker_url)
