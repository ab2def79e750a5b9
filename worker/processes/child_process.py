"""Child processes without the worker's secrets, each of which ends together with everything that it has started."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from types import TracebackType
from typing import Self

from worker.processes.child_environment import child_environment

_STDERR_TAIL = 2000
# Python reports a signal as a negative exit code; torchrun and shells report 128 and the number of the signal.
_SHELL_SIGNALS = 128
_KILLED_FROM_OUTSIDE = {
    code for number in (signal.SIGKILL, signal.SIGTERM) for code in (-number, _SHELL_SIGNALS + number)
}


class ChildProcess:
    """A child process in a session, and so in a process group, of its own.

    Its environment has none of the worker's secrets, and its temporary folder is its own. Its standard input is a pipe
    that closes when the worker dies, for whatever reason: `python -m core --until-stdin-closes` then ends itself. At
    the end of the `with` block the process and everything that it has started is killed.

    stderr: file that its standard error is appended to. stdout: file for its standard output; None for a pipe, from
    which `output` reads. untrusted: whether it reads files from users, and so gets only a minimal environment. online:
    whether it is to reach the internet.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stderr: Path,
        stdout: Path | None = None,
        untrusted: bool = False,
        online: bool = False,
    ) -> None:
        self._stderr = stderr
        self._threads: list[Thread] = []
        """Threads of a subclass, which end with the process."""
        # Not in the work folder: the path of a Unix socket, which image loaders make there, has at most 107 characters.
        self._temporary = TemporaryDirectory(prefix="temper-", ignore_cleanup_errors=True)
        with ExitStack() as files, ExitStack() as failed:
            failed.callback(self._temporary.cleanup)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=files.enter_context(stdout.open("wb")) if stdout else subprocess.PIPE,
                stderr=files.enter_context(stderr.open("ab")),
                start_new_session=True,
                env=child_environment(Path(self._temporary.name), untrusted=untrusted, online=online),
            )
            failed.pop_all()
        assert self._process.stdin
        self._input = self._process.stdin
        self.output = self._process.stdout
        pipe = self.output and f"pipe:[{os.fstat(self.output.fileno()).st_ino}]"
        self._output_name = pipe or str(stdout and stdout.resolve())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for thread in self._threads:
            thread.join()
        self._input.close()
        if self.output:
            self.output.close()
        self._temporary.cleanup()

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until the process ends and return its exit code, or None when `seconds` pass first."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and the members of its process group, which may live on after it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill the process and everything that it has started, and wait until it has ended."""
        self.kill_all()
        self._process.wait()

    def kill_all(self) -> None:
        """Kill what is left of the process and everything that it has started."""
        self.signal_group(signal.SIGKILL)
        # torchrun puts its children into process groups of their own, but they share one standard output.
        for process in _processes_writing_to(self._output_name):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    @property
    def exit_code(self) -> int:
        """Exit code of the ended process, negative for a signal. Waits for its end."""
        return self._process.wait()

    @property
    def was_killed_from_outside(self) -> bool:
        """Whether SIGKILL or SIGTERM ended the process: sent by the kernel when memory runs out, or by an operator."""
        return self.exit_code in _KILLED_FROM_OUTSIDE

    def describe_exit(self) -> str:
        """Name the signal that ended the process, or its exit code."""
        code = self.exit_code
        number = -code if code < 0 else code - _SHELL_SIGNALS
        with suppress(ValueError):
            return signal.Signals(number).name
        return f"exit code {code}"

    def read_stderr_tail(self) -> str:
        """Read the end of what the process wrote to its standard error."""
        return self._stderr.read_bytes()[-_STDERR_TAIL:].decode(errors="replace").strip()


def _processes_writing_to(output: str) -> Iterator[int]:
    """Find the processes whose standard output is this pipe or file, on systems with /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str((folder / "fd/1").readlink()) == output:
                yield int(folder.name)
