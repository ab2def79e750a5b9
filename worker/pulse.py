"""A sign of life: a file that the worker touches while it looks for work or keeps a job.

`python -m worker.pulse` is the health check: it fails when the file was not touched for half a minute.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path

from app.platform.settings import Settings

_LATE_SECONDS = 30
_OFTEN_ENOUGH = 1.0


class Pulse:
    """The file, and who touches it. A disk that refuses is no reason to stop working."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._beaten_at = 0.0

    def beat(self) -> None:
        """Say that the worker lives."""
        if time.monotonic() - self._beaten_at > _OFTEN_ENOUGH:
            self._beaten_at = time.monotonic()
            with suppress(OSError):
                self._file.touch()


def check(file: Path) -> str:
    """Say what is wrong with a worker, or nothing."""
    try:
        age = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return f"no worker has ever run here: there is no {file}"
    return f"the worker was last heard of {age:.0f} seconds ago" if age > _LATE_SECONDS else ""


if __name__ == "__main__":
    sys.exit(check(Settings.from_environment().pulse_file) or None)
