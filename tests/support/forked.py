"""Processes of Python modules that start at once: forks of one process that has imported what they need.

A fresh interpreter computes for one to four seconds until torch or the service is imported, and the quick suite starts
about a hundred. A fork runs its module from the top as `python -m` does, with an environment, a folder and an output of
its own, takes signals and has an exit status. What depends on a fresh interpreter is tested with `subprocess`.
"""

import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from tests.support import constants

IMPORTED = [
    "alembic.command",
    "app.main",
    "worker.main",
    "worker.polling",
    "core.__main__",
    "core.evaluation.autoattack",
    "core.intake.inspect",
    "core.training.run",
]
"""Modules that every fork finds imported."""


class Forked:
    """A process that runs `python -m module arguments`, or a script, with the methods of `subprocess.Popen`.

    command: what follows `python`. output: file, or its descriptor, for stdout. errors: the same for stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: int | IO[Any],
        errors: int | IO[Any],
    ) -> None:
        files = [each if isinstance(each, int) else each.fileno() for each in (output, errors)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._process = context.Process(target=_Run(list(command), str(cwd), dict(env), files))
        self._lock = threading.Lock()
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status once it has ended, negative for a signal."""
        with self._lock:
            return self._process.exitcode

    def poll(self) -> int | None:
        """Ask whether it has ended."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        with self._lock:
            self._process.join(timeout)
            if self._process.exitcode is None:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[str], folder: Path, *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a module to its end; its output goes through files in `folder`."""
    texts = [folder / f"{name}.txt" for name in ("stdout", "stderr")]
    with texts[0].open("wb") as output, texts[1].open("wb") as errors:
        status = Forked(command, cwd=cwd, env=env, output=output, errors=errors).wait()
    return subprocess.CompletedProcess(command, status, *(text.read_text() for text in texts))


def stop_server() -> None:
    """End the process that the forks come from, after which its computing time counts as this one's."""
    with contextlib.suppress(ChildProcessError):
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


class _Run:
    """What a fork does."""

    def __init__(self, command: list[str], cwd: str, env: dict[str, str], files: list[int]) -> None:
        self._command = command
        self._cwd = cwd
        self._env = env
        self._files = files

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors are handed over at the moment when the process starts.
        return self.__dict__ | {"_files": [DupFd(number) for number in self._files]}

    def __call__(self) -> None:
        for number, file in enumerate(self._files, 1):
            os.dup2(file.detach(), number)  # type: ignore[attr-defined]
        os.chdir(self._cwd)
        os.environ.clear()
        os.environ.update(self._env)
        random.seed()
        constants.apply()
        flag, *rest = self._command
        sys.argv = self._command if flag != "-m" else rest
        if flag == "-m":
            of_package = f"{rest[0]}.__main__"
            sys.modules.pop(of_package if of_package in sys.modules else rest[0], None)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(flag, run_name="__main__")
