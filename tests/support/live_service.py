"""A real service, started by the real `temper serve`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.guard import guard_process

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TEMPER_POLL_SECONDS": "0.2",
    "TEMPER_WEBHOOK_ALLOW": "localhost",
    "TEMPER_WEBHOOK_HTTP": "true",
}


@dataclass
class Service:
    """A real service, started by the real command."""

    url: str
    folder: Path
    process: subprocess.Popen[str]

    @property
    def environment(self) -> Mapping[str, str]:
        """What the `temper` command needs to find it."""
        return os.environ | {"TEMPER_DATA_DIR": str(self.folder)}

    def temper(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a `temper` command against it."""
        return run_temper(*arguments, environment=self.environment, **options)

    def stop(self) -> None:
        """End it, with its processes, by force where it does not end by itself."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def children(self) -> dict[str, int]:
        """The processes it runs now, by module."""
        return {module: pid for module in ("app", "worker.polling") for pid in _find(module, self.process.pid)}


def run_temper(*arguments: str, environment: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a `temper` command."""
    command = [sys.executable, "-m", "client", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, **options)


def start_service(folder: Path) -> Service:
    """Run `temper serve` on a free port; return when it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "client", "serve", "--port", str(port), "--data-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | SETTINGS,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        text=True,
    )
    log.close()
    guard_process(process.pid)
    service = Service(f"http://127.0.0.1:{port}", folder, process)
    try:
        eventually(lambda: "is ready" in (folder / "serve.log").read_text() or process.poll() is not None)
        eventually(lambda: "worker.polling" in service.children())
    except BaseException:
        service.stop()
        raise
    return service


def eventually(claim: Callable[[], Any], *, seconds: float = 90) -> None:
    """Wait until a claim is true."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def _find(module: str, parent: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent and f"\0-m\0{module}\0" in command:
            yield int(folder.name)
