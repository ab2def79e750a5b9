"""The training process: `python -m core`, what it reports, and how it ends."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from core import events as reported

_BATCH_SECONDS = 0.5
_STDERR_TAIL = 2000


class Trainer:
    """One training process in a process group of its own.

    It has no credentials, and its standard input is a pipe that closes when this process dies, however it dies: the
    training process takes that as its own end.
    """

    def __init__(self, command: Sequence[str], *, log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("TEMPER_")},
            )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._threads = [Thread(target=self._read), Thread(target=self._bury)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for thread in self._threads:
            thread.join()
        self._input.close()
        self._output.close()

    def batches(self) -> Iterator[list[reported.Event]]:
        """Yield what the process reports, the first thing at once and then twice a second, until its output ends.

        A saved file ends a batch: history must not run ahead of it.
        """
        due = monotonic()
        while (line := self._lines.get()) is not None:
            yield list(self._batch(line, due))
            due = monotonic() + _BATCH_SECONDS

    def stop(self, *, grace: float) -> None:
        """Ask the process to end, and kill it and its children after the grace."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Wait for the end and give the exit code: negative for a signal."""
        return self._process.wait()

    def last_words(self) -> str:
        """Give the end of what it wrote for people."""
        return self._log.read_bytes()[-_STDERR_TAIL:].decode(errors="replace").strip()

    def _batch(self, line: bytes | None, due: float) -> Iterator[reported.Event]:
        with suppress(Empty):
            while line is not None:
                event = _read_event(line)
                yield event
                if isinstance(event, reported.Saved):
                    return
                line = self._lines.get(timeout=max(0.0, due - monotonic()))
            self._lines.put(None)

    def _signal(self, number: signal.Signals) -> None:
        # Also after the process has ended: its children are in the group as long as they live.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        for line in self._output:
            self._lines.put(line)
        self._lines.put(None)

    def _bury(self) -> None:
        """Kill what the process leaves behind, which would hold its output open."""
        self._process.wait()
        self._signal(signal.SIGKILL)


def _read_event(line: bytes) -> reported.Event:
    try:
        return reported.read(line)
    except ValidationError:
        text = line.decode(errors="replace").strip()
        return reported.Warned(code="unreadable_output", message=f"the training process printed: {text[:500]}")
