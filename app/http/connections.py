"""Limits on connections: how long a client may take over the head and the body of a request, and how many heads may be
unfinished at once.

uvicorn has none of these: a client that opens connections and sends half a head in each would take all file
descriptors of the process. `Connection` is the protocol class that uvicorn runs for each connection.
"""

import resource
from asyncio import TimerHandle, Transport
from collections import OrderedDict
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_SECONDS = 10.0
"""Seconds in which the head of a request must arrive, from its first byte, or from the connection."""
MOST_HEADS = 512
"""Unfinished heads in one process. Beyond it, the connections that have waited longest are closed."""
GRACE_SECONDS = 1.0
"""Seconds for which a connection is not closed for MOST_HEADS: a client that has sent its head is read by then."""
BODY_SECONDS = 30.0
"""Seconds in which a body must arrive, besides the time that its bytes take at BODY_BYTES_PER_SECOND."""
BODY_BYTES_PER_SECOND = 1000.0
"""Slowest body that is waited for."""
MOST_CONNECTIONS = 4096
"""Open connections of one process, streams among them, beyond which requests are answered with 503."""
_MOST_FILES = 65_536

_waiting: WeakKeyDictionary[ServerState, "OrderedDict[Connection, float]"] = WeakKeyDictionary()
"""Per server, the connections whose head is unfinished, with the time since when: the oldest first."""


def allow_many_files() -> None:
    """Raise the number of file descriptors of this process to what the system allows, so that connections find some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Requests(h11.Connection):
    """The requests of one connection, without those that proxies read in two ways."""

    def next_event(self) -> Any:
        """Give the next event. Raises h11.RemoteProtocolError on a head that RFC 9112, section 6.1, lets us refuse."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {bytes(name).lower() for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("Content-Length together with Transfer-Encoding")
        return event


class Connection(H11Protocol):
    """A connection that is closed when its client takes too long."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Requests(h11.SERVER)  # heads of up to 16 KiB, as uvicorn's own
        self._heads = _waiting.setdefault(self.server_state, OrderedDict())
        self._timer: TimerHandle | None = None
        self._body_bytes = 0
        self._body_since = 0.0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Wait for the first head."""
        super().connection_made(transport)
        self._await_head()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived, and wait for the rest of the head or body that it belongs to."""
        before = self.cycle
        super().data_received(data)
        if self.transport.is_closing():
            self._stop_waiting()
        elif self.conn.their_state is h11.IDLE:
            if self not in self._heads:
                self._await_head()
        elif self.conn.their_state is h11.SEND_BODY:
            self._await_body(len(data), is_new=self.cycle is not before)
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Go on with the next request, whose head may be there in part."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._stop_waiting()
            if self.conn.trailing_data[0]:
                self._await_head()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._heads[self] = self.loop.time()
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _await_body(self, size: int, *, is_new: bool) -> None:
        self._heads.pop(self, None)
        if is_new:
            self._body_bytes, self._body_since = 0, self.loop.time()
        self._body_bytes += size
        if is_new or self._timer is None:
            self._set_timer_for_body()

    def _set_timer_for_body(self) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_at(self._body_deadline(), self._check_body)

    def _body_deadline(self) -> float:
        return self._body_since + BODY_SECONDS + self._body_bytes / BODY_BYTES_PER_SECOND

    def _check_body(self) -> None:
        if self.flow.read_paused:
            # The service itself does not read on at present, so the client cannot send.
            self._body_since += BODY_SECONDS
        if self.loop.time() < self._body_deadline():
            self._set_timer_for_body()
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        self._heads.pop(self, None)
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        """Close the connections that have waited longest for their heads, where there are too many."""
        while len(self._heads) > MOST_HEADS:
            oldest, since = next(iter(self._heads.items()))
            if self.loop.time() - since < GRACE_SECONDS:
                return
            oldest._stop_waiting()  # of the same class
            oldest.transport.abort()
