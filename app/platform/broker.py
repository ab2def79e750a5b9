"""The connection to the message broker. It takes long to import, so only a process with a broker does."""

from collections.abc import Mapping
from contextlib import suppress
from queue import Empty
from types import MappingProxyType
from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from app.platform.ids import new_id
from app.platform.settings import ResourceClass

LOOK_FOR_WORK = "look_for_work"
"""The one task there is."""
EXPIRES_SECONDS = 60
"""An older ring is not answered: by then every worker has looked by itself."""
ON_THE_WIRE: Mapping[str, Any] = MappingProxyType(
    {
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_send_task_events": False,
    }
)
"""Celery settings that API and worker must share, as they share KEY_PREFIX."""
KEY_PREFIX = "temper:"
"""Prefix of every key in the broker, which may be shared with other programs."""

AWAY = KombuError, RedisError, OSError
"""The errors of a broker that cannot be reached, or that refuses."""

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
_MOST_UNHEARD = 100
"""Rings that wait in the broker, from which on another one would wake no worker."""


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
        """Count the messages that no worker has received yet."""
        self._open = self._open or self._celery.connection_for_write()
        count: int = self._open.default_channel.queue_declare(resource).message_count
        return count

    def echo(self) -> None:
        """Send a message to this process and receive it."""
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
