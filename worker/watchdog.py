"""Noticing a training process that lives but no longer gets anywhere: a hung collective, a stuck loader, a stopped
process."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import monotonic

from core.schema import events as reported

_STEPS = 20
"""So many times the usual step is too long for one."""


class Watchdog:
    """Counts the seconds without a sign of life: an event, or a file that changes in the work folder, for an
    evaluation keeps there what it has found.

    stall_seconds: so long without one is too long, and twenty times the median step where that is more.
    """

    def __init__(self, folder: Path, *, stall_seconds: float) -> None:
        self._folder = folder
        self._stall_seconds = stall_seconds
        self._steps: deque[float] = deque(maxlen=101)
        self._trained = 0.0
        self._newest = 0.0
        self._changed_at = monotonic()

    def see(self, events: Sequence[reported.Event]) -> None:
        """Learn from the training steps how long one takes."""
        for event in events:
            if isinstance(event, reported.Stepped):
                # The first one has behind it what an earlier attempt has trained.
                if self._trained:
                    self._steps.append(event.seconds - self._trained)
                self._trained = event.seconds

    def finds_it_stalled(self, *, heard_at: float) -> str | None:
        """Say so in words when it is, given the moment of the last event."""
        self._look_into_folder()
        silent = monotonic() - max(heard_at, self._changed_at)
        limit = max(self._stall_seconds, _STEPS * median(self._steps) if self._steps else 0)
        return f"it gave no sign of life for {silent:.0f} seconds" if silent > limit else None

    def _look_into_folder(self) -> None:
        # What it writes for people may also come from a process that hangs.
        times = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime if path.suffix != ".log" else 0.0)
        newest = max(times, default=0.0)
        if newest != self._newest:
            self._newest, self._changed_at = newest, monotonic()
