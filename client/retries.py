"""Retry policy of the client: growing pauses for a limited time, and the deadline of a caller who gives one.

Not tenacity: four of the five loops resume a stream or a file, start counting again when data arrives, and obey
Retry-After, which leaves nothing for it to do but sleep; and it takes 0.1 s to import.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from client.errors import TOO_MANY, Answered, StillRunning, Unreachable

PASSING = frozenset({TOO_MANY, 502, 503, 504})
"""Status codes of a service, or of a proxy in front of it, that is busy or restarting."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
SILENT = 2.0
"""Seconds of an outage that are not worth a message."""


class Deadline:
    """The moment at which a caller stops waiting for a job.

    job: the job, for the message. seconds: from now on; None for no deadline.
    """

    def __init__(self, job: str, seconds: float | None) -> None:
        self._job = job
        self._at = inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline; infinite where there is none."""
        return max(self._at - time.monotonic(), 0.0)

    def passed(self, *, is_paused: bool = False) -> StillRunning:
        """Make the error that says that the deadline has passed. is_paused: whether the job is paused."""
        goes_on = f"it is paused: temper resume {self._job}" if is_paused else "it goes on"
        return StillRunning(f"{self._job} has not ended in time; {goes_on}", is_paused=is_paused)


class Retries:
    """Decides whether a failed request is sent again, and pauses before it is.

    patience: seconds to go on after the last success. deadline: that of the caller, if there is one. tell: called with
    a line when an outage lasts, and when it is over.
    """

    def __init__(
        self, patience: float, *, deadline: Deadline | None = None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._patience = patience
        self._deadline = deadline
        self._tell = tell
        self._failing_since: float | None = None
        self._has_told = False
        self._next = FIRST_PAUSE
        self._start_counting()

    def restart(self) -> None:
        """Start counting again, because data has arrived."""
        if self._has_told and self._failing_since is not None:
            self._tell(f"the service is back after {_in_words(time.monotonic() - self._failing_since)}")
        self._failing_since, self._has_told = None, False
        self._start_counting()

    def pause_or_raise(self, error: Exception, *, at_least: float = 0.0) -> None:
        """Sleep before the next attempt. Raise `error` if the pause would end after patience has run out, and
        StillRunning if it would end after the deadline."""
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        pause = max(at_least, self._next * random.uniform(0.75, 1.25))
        if self._deadline and pause > self._deadline.left:
            time.sleep(self._deadline.left)
            raise self._deadline.passed() from error
        if now + pause > self._gives_up_at:
            raise error
        if not self._has_told and now - self._failing_since > SILENT:
            longest = _in_words(self._gives_up_at - now)
            self._tell(f"the service does not answer; waiting for it, {longest} at the longest")
            self._has_told = True
        time.sleep(pause)
        self._next = min(2 * self._next, LONGEST_PAUSE)

    @contextmanager
    def counted_from_the_end(self, patience: float) -> Iterator[None]:
        """Start counting now and at the end of the block, however long it takes: a stream was open during it.

        patience: that of a service which has answered.
        """
        self._patience = patience
        self.restart()
        try:
            yield
        finally:
            self.restart()

    @contextmanager
    def pause_on_failure(self, *, statuses: frozenset[int] = PASSING, at_least: float = 0.0) -> Iterator[None]:
        """Turn an unreachable service, or an answer with one of these statuses, into a pause.

        Raises the error if it is another one or if patience has run out; StillRunning after the deadline.
        """
        try:
            yield
        except Unreachable as error:
            self.pause_or_raise(error, at_least=at_least)
        except Answered as error:
            if error.problem.status not in statuses:
                raise
            self.pause_or_raise(error, at_least=max(at_least, error.retry_after))
        else:
            self.restart()

    def _start_counting(self) -> None:
        self._gives_up_at = time.monotonic() + self._patience
        self._next = FIRST_PAUSE


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
