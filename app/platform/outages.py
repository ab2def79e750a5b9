"""Outages in the log: a line when something fails, one a minute while that lasts, and one when it works again."""

import logging
from threading import Lock
from time import monotonic

_AGAIN_SECONDS = 60.0
"""Seconds between two lines about the same outage."""


class Outage:
    """What may be out of reach for a while and is tried again and again. Threads may share it."""

    def __init__(self, log: logging.Logger, failing: str, back: str) -> None:
        """failing, back: what the log says when a try has failed, and when one has succeeded after that."""
        self._log = log
        self._failing, self._back = failing, back
        self._lock = Lock()
        self._since: float | None = None
        self._told = 0.0

    def lasts(self, why: object) -> None:
        """Say that a try has failed, and why."""
        now = monotonic()
        with self._lock:
            since, self._since = self._since, self._since if self._since is not None else now
            if since is not None and now - self._told < _AGAIN_SECONDS:
                return
            self._told = now
        if since is None:
            self._log.warning("%s: %s", self._failing, why)
        else:
            self._log.warning("%s, for %.0f s already: %s", self._failing, now - since, why)

    def ends(self) -> None:
        """Say that a try has succeeded. The log tells it only after an outage."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            self._log.info("%s, after %.0f s", self._back, monotonic() - since)
