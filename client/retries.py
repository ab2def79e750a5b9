"""Retry policy of the client: growing pauses for a limited time.

Not tenacity: four of the five loops resume a stream or a file, start counting again when data arrives, and obey
Retry-After, which leaves nothing for it to do but sleep; and it takes 0.1 s to import.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from client.errors import Answered, Unreachable

PASSING = frozenset({429, 502, 503, 504})
"""Status codes of a service, or of a proxy in front of it, that is busy or restarting."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0


class Retries:
    """Decides whether a failed request is sent again, and pauses before it is.

    patience: seconds to go on after the last success.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.restart()

    def restart(self) -> None:
        """Start counting again, because data has arrived."""
        self._deadline = time.monotonic() + self._patience
        self._next = FIRST_PAUSE

    def pause_or_raise(self, error: Exception, *, at_least: float = 0.0) -> None:
        """Sleep before the next attempt; raise `error` if the pause would end after the deadline."""
        pause = max(at_least, self._next * random.uniform(0.75, 1.25))
        if time.monotonic() + pause > self._deadline:
            raise error
        time.sleep(pause)
        self._next = min(2 * self._next, LONGEST_PAUSE)

    @contextmanager
    def pause_on_failure(self, *, statuses: frozenset[int] = PASSING, at_least: float = 0.0) -> Iterator[None]:
        """Turn an unreachable service, or an answer with one of these statuses, into a pause.

        Raises the error if it is another one or if patience has run out.
        """
        try:
            yield
        except Unreachable as error:
            self.pause_or_raise(error, at_least=at_least)
        except Answered as error:
            if error.problem.status not in statuses:
                raise
            self.pause_or_raise(error, at_least=max(at_least, error.retry_after))
