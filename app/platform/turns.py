"""Turns of threads, in the order in which they ask."""

from collections import deque
from threading import Event, Lock


class NoTurn(Exception):
    """Others have been writing all the time that this writer could wait; a later try may succeed."""


class Turns:
    """Lets one thread at a time go on. Any thread may end the turn that another one has taken."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_taken = False
        self._waiting: deque[Event] = deque()

    def take(self, *, seconds: float) -> None:
        """Wait for the turn. Raises NoTurn after these seconds."""
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            mine = Event()
            self._waiting.append(mine)
        try:
            if not mine.wait(seconds):
                raise NoTurn(f"other transactions have been writing to the database for {seconds:g} s")
        except BaseException:
            self._withdraw(mine)
            raise

    def end(self) -> None:
        """Give the turn to the thread that has waited longest."""
        with self._lock:
            self._pass_on()

    def _withdraw(self, mine: Event) -> None:
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
            else:  # the turn has come in the moment in which the wait ended
                self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._is_taken = False
