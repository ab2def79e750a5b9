"""The training process: `python -m core`, what it reports, what can be asked of it, and how it ends."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from app.platform.redaction import is_named_like_a_secret
from core.schema import events as reported

_BATCH_SECONDS = 1.0
_STDERR_TAIL = 2000
_OF_THE_SERVICE = re.compile(r"(TEMPER|AWS|PG|CELERY)_?.*")


class Trainer:
    """One training process in a process group of its own.

    It has no credentials, and its standard input is a pipe that closes when this process dies, however it dies: the
    training process takes that as its own end. launches: whether it is torchrun, whose children train, each in a
    process group of its own.
    """

    def __init__(self, command: Sequence[str], *, log: Path, launches: bool = False) -> None:
        self.heard_at = monotonic()
        """When it last reported something."""
        self._log = log
        self._launches = launches
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env=without_secrets(os.environ),
            )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._pipe = f"pipe:[{os.fstat(self._output.fileno()).st_ino}]"
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._all_read = Event()
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
        self._output.close()

    def batches(self) -> Iterator[list[reported.Event]]:
        """Yield what the process reports, the first thing at once and then once a second, until its output ends.

        A saved file ends a batch: history must not run ahead of it.
        """
        while (line := self._lines.get()) is not None:
            yield list(self._batch(line))
            if self._lines.empty():
                # Not line by line meanwhile: each waking takes a little from the training, which may have this core.
                self._all_read.wait(_BATCH_SECONDS)

    def ask_to_pause(self) -> None:
        """Ask the process to save its state and end."""
        self._signal(signal.SIGTERM)

    def ask_to_stop_early(self) -> None:
        """Ask the process to deliver the best weights so far. It must have said that it has started: before that, the
        signal would end it."""
        for process in _children(self._process.pid) if self._launches else [self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGUSR1)

    def kill(self) -> None:
        """Kill the process and all that it has started."""
        self._kill_all()
        self._process.wait()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait for the end and give the exit code: negative for a signal."""
        return self._process.wait()

    def last_words(self) -> str:
        """Give the end of what it wrote for people."""
        return self._log.read_bytes()[-_STDERR_TAIL:].decode(errors="replace").strip()

    def _batch(self, line: bytes | None) -> Iterator[reported.Event]:
        with suppress(Empty):
            while line is not None:
                event = _read_event(line)
                yield event
                if isinstance(event, reported.Saved):
                    return
                line = self._lines.get_nowait()
            self._lines.put(None)

    def _signal(self, number: signal.Signals) -> None:
        # Also after the process has ended: its children are in the group as long as they live.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        for line in self._output:
            self.heard_at = monotonic()
            self._lines.put(line)
        self._lines.put(None)
        self._all_read.set()

    def _bury(self) -> None:
        """End what the process leaves behind, which would hold its output open."""
        self._process.wait()
        self._kill_all()
        self._input.close()

    def _kill_all(self) -> None:
        self._signal(signal.SIGKILL)
        # torchrun's children have process groups of their own, but one output.
        for process in _holders(self._pipe):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out of an environment what configures the service, and whatever else is named like a secret."""
    return {
        name: value
        for name, value in environment.items()
        if not _OF_THE_SERVICE.fullmatch(name.upper()) and not is_named_like_a_secret(name)
    }


def _holders(pipe: str) -> Iterator[int]:
    """Find the processes whose standard output is this pipe, on systems that tell."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str((folder / "fd/1").readlink()) == pipe:
                yield int(folder.name)


def _children(process: int) -> list[int]:
    """Find a process's children, on systems that tell."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def _read_event(line: bytes) -> reported.Event:
    try:
        return reported.read(line)
    except ValidationError:
        text = line.decode(errors="replace").strip()
        return reported.Warned(code="unreadable_output", message=f"the training process printed: {text[:500]}")
