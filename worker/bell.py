"""What wakes a worker that waits for work: a ring, or the end."""

from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event

_TICK_SECONDS = 0.2


class Bell:
    """Rings that wait to be heard. Each wakes one slot; the stop wakes all, from then on."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        # Its put, unlike a Queue's, may be called by a signal handler.
        self._rings: SimpleQueue[Event] = SimpleQueue()

    def ring(self) -> None:
        """Wake a slot. This returns when one has heard it, which a busy one does after its job, or at the stop."""
        heard = Event()
        self._rings.put(heard)
        while not (heard.wait(_TICK_SECONDS) or self._stopping.is_set()):
            pass

    def stop(self) -> None:
        """Let nobody wait any more."""
        self._stopping.set()
        self._rings.put(Event())

    def wait(self, seconds: float) -> None:
        """Wait for a ring or the stop, for so many seconds at most."""
        with suppress(Empty):
            self._rings.get(timeout=seconds).set()
        if self._stopping.is_set():
            self._rings.put(Event())
