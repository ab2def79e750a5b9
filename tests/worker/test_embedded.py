"""The polling worker and the API as real processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.instance import DIGITS, calling
from tests.worker.processes import processes_with, wait_until

ROOT = Path(__file__).parent.parent.parent


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Instance:
    """An API process and worker processes in a data folder of their own."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.credentials = folder / "credentials" / "local.json"
        self.processes = []
        chosen = {
            "data_dir": folder / "data",
            "port": free_port(),
            "credentials_file": self.credentials,
            "poll_seconds": 0.05,
            "watch_seconds": 0.05,
            **settings,
        }
        self.url = f"http://127.0.0.1:{chosen['port']}"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.environment |= {f"TEMPER_{name.upper()}": str(value) for name, value in chosen.items()}

    def start(self, *command):
        log = (self.folder / f"{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, *command], env=self.environment, stdout=log, stderr=log, cwd=ROOT
            )
        self.processes.append(process)
        return process

    def start_api(self):
        process = self.start("-m", "app.main")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/readyz").status_code == 200:
                    return process
            assert process.poll() is None, self.log(0)
            time.sleep(0.05)
        raise AssertionError("the API did not start")

    def start_worker(self):
        return self.start(str(ROOT / "tests" / "worker" / "fake_worker.py"))

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
                process.kill()
            process.wait()


@contextlib.contextmanager
def instance(folder, **settings):
    """An instance that leaves no process behind."""
    temper = Instance(folder, **settings)
    try:
        yield temper
    finally:
        temper.stop()


@pytest.fixture(scope="module")
def temper(tmp_path_factory):
    """A running API; each test starts and ends its own workers."""
    with instance(tmp_path_factory.mktemp("temper"), concurrency=4, lease_seconds=4, heartbeat_seconds=0.5) as temper:
        temper.start_api()
        yield temper


def finish(api, job_id, seconds=40):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = api.get(f"/jobs/{job_id}", params={"wait": 5}).json()
        if job["is_terminal"]:
            return job
    raise AssertionError(job)


def events(api, job_id):
    return api.get(f"/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]


def running(api, job_id):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        job = api.get(f"/jobs/{job_id}").json()
        if job["progress"] and job["progress"]["step"]:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def test_twenty_jobs_of_five_clients_run_once_each(temper):
    def post_four(client_number):
        with temper.client() as api:
            answers = [
                api.post("/jobs", json={**DIGITS, "seed": seed, "name": f"{client_number}"}) for seed in range(4)
            ]
            return [answer.json()["id"] for answer in answers if answer.status_code == 201]

    with ThreadPoolExecutor(5) as pool:
        posted = [job_id for ids in pool.map(post_four, range(5)) for job_id in ids]
    assert len(set(posted)) == 20
    with temper.worker(), temper.client() as api:
        for job_id in posted:
            job = finish(api, job_id)
            assert (job["status"], job["attempt"]) == ("succeeded", 1)
            history = events(api, job_id)
            assert [event["seq"] for event in history] == list(range(1, len(history) + 1))
            kinds = Counter(event["type"] for event in history)
            assert (kinds["job.claimed"], kinds["job.succeeded"], kinds["finished"]) == (1, 1, 1)


def test_a_job_survives_a_killed_worker_and_is_claimed_again_after_its_lease(temper):
    with temper.client() as api:
        job_id = api.post("/jobs", json={**DIGITS, "metadata": {"seconds": "0.2"}}).json()["id"]
        with temper.worker() as worker:
            running(api, job_id)
            assert processes_with(job_id)
            worker.kill()
            worker.wait()
            wait_until(lambda: not processes_with(job_id), seconds=3)
        with temper.worker():
            job = finish(api, job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        kinds = [event["type"] for event in events(api, job_id) if event["type"].startswith("job.")]
        assert kinds == ["job.created", "job.claimed", "job.recovered", "job.claimed", "job.succeeded"]
        assert len(api.get(f"/jobs/{job_id}/checkpoints").json()["data"]) == 1


def test_a_stopped_worker_hands_its_job_to_the_next(temper):
    with temper.client() as api:
        job_id = api.post("/jobs", json={**DIGITS, "metadata": {"seconds": "0.2"}}).json()["id"]
        with temper.worker() as worker:
            running(api, job_id)
            worker.terminate()
            assert worker.wait(10) == 0
        assert api.get(f"/jobs/{job_id}").json()["status"] == "queued"
        with temper.worker():
            job = finish(api, job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)


def test_api_and_workers_can_start_at_the_same_time_on_nothing(tmp_path):
    with instance(tmp_path) as temper:
        temper.start_worker()
        temper.start_worker()
        temper.start_api()
        with temper.client() as api:
            assert finish(api, api.post("/jobs", json=DIGITS).json()["id"])["status"] == "succeeded"


def test_the_api_stops_at_once_with_an_open_stream_and_makes_its_key_only_once(tmp_path):
    with instance(tmp_path) as temper:
        server = temper.start_api()
        stored = json.loads(temper.credentials.read_text())
        assert stored["url"] == temper.url
        assert temper.log(0).count(stored["api_key"]) == 1
        assert temper.credentials.stat().st_mode & 0o777 == 0o600
        assert temper.credentials.parent.stat().st_mode & 0o777 == 0o700
        with temper.client() as api:
            job_id = api.post("/jobs", json=DIGITS).json()["id"]
            with api.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
                lines = stream.iter_lines()
                assert next(line for line in lines if line.startswith("id:")) == "id: 1"
                begin = time.monotonic()
                server.send_signal(signal.SIGTERM)
                assert "event: end" not in list(lines)
            assert server.wait(10) in (0, -signal.SIGTERM)
            assert time.monotonic() - begin < 5
        temper.start_api()
        assert json.loads(temper.credentials.read_text()) == stored
        assert "API key" not in temper.log(1)


def test_no_process_of_the_service_loads_torch():
    assert loaded_by("app.main, worker.embedded", "torch", "numpy", "safetensors") == "[]"


def test_the_worker_does_not_load_the_web_framework():
    assert loaded_by("worker.embedded", "fastapi", "starlette", "uvicorn") == "[]"


def loaded_by(modules, *names):
    code = f"import sys, {modules}; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()
