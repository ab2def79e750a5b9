"""An instance as its users run it: the API and its workers as processes of their own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from tests.support.constants import SITE, environment_of
from tests.support.forked import Forked
from tests.support.guard import guard_process
from tests.support.instance import calling

ROOT = Path(__file__).parents[2]
FAKE_WORKER = (str(ROOT / "tests" / "support" / "fake_worker.py"),)
WORKER = ("-m", "worker.polling")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Instance:
    """An API process and worker processes in a data folder of their own.

    forked: start them as forks (`tests.support.forked`), which takes less time than fresh interpreters.
    """

    def __init__(self, folder, *worker_command, constants=None, forked=True, **settings):
        self.forked = forked
        self.folder = folder
        self.worker_command = worker_command
        self.credentials = folder / "credentials" / "local.json"
        self.processes = []
        chosen = {
            "data_dir": folder / "data",
            "port": free_port(),
            "credentials_file": self.credentials,
            "poll_seconds": 0.05,
            **settings,
        }
        self.url = f"http://127.0.0.1:{chosen['port']}"
        self.environment = {**os.environ, "PYTHONPATH": f"{SITE}:{ROOT}"}
        self.environment |= environment_of({"app.jobs.watch.WATCH_SECONDS": 0.05, **(constants or {})})
        self.environment |= {f"TEMPER_{name.upper()}": str(value) for name, value in chosen.items()}

    def start(self, *command):
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            if self.forked:
                process = Forked(command, env=self.environment, output=log, errors=log, cwd=ROOT)
            else:
                command = [sys.executable, *command]
                process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=ROOT)
        guard_process(process.pid)
        self.processes.append(process)
        return process

    def start_api(self, *command):
        process = self.start(*(command or ("-m", "app")))
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/readyz").status_code == 200:
                    return process
            assert process.poll() is None, self.log(self.processes.index(process))
            time.sleep(0.05)
        raise AssertionError("the API did not start")

    def temper(self, *command):
        """Run a `temper` command to its end."""
        command = [sys.executable, "-m", "client", *command]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def start_worker(self):
        return self.start(*self.worker_command)

    @contextlib.contextmanager
    def worker(self):
        """A worker process for as long as the block runs."""
        worker = self.start_worker()
        try:
            yield worker
        finally:
            worker.kill()
            worker.wait()

    def client(self):
        return calling(self.url, json.loads(self.credentials.read_text())["api_key"])

    def log(self, number):
        return (self.folder / f"{number}.log").read_text()

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                # An API of several processes would leave them behind when it is killed.
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                for pid in [process.pid, *map(int, children)]:
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def instance(folder, *worker_command, constants=None, forked=True, **settings):
    """An instance that leaves no process behind, with settings and constants (`tests.support.constants`) of its own."""
    temper = Instance(folder, *worker_command, constants=constants, forked=forked, **settings)
    try:
        yield temper
    finally:
        temper.stop()


def finish(api, job_id, seconds=40):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = api.get(f"/jobs/{job_id}", params={"wait": 5}).json()
        if job["is_terminal"]:
            return job
    raise AssertionError(job)
