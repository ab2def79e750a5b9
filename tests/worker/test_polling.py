"""The polling worker and the API as real processes."""

import json
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.instance import DIGITS
from tests.support.native import FAKE_WORKER, finish, instance
from tests.support.processes import processes_with, wait_until


@pytest.fixture(scope="module")
def temper(tmp_path_factory):
    """A running API; each test starts and ends its own workers."""
    with instance(tmp_path_factory.mktemp("temper"), *FAKE_WORKER, concurrency=4, lease_seconds=4) as temper:
        temper.start_api()
        yield temper


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
            wait_until(lambda: not processes_with(job_id), seconds=20)
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
    with instance(tmp_path, *FAKE_WORKER) as temper:
        temper.start_worker()
        temper.start_worker()
        temper.start_api()
        with temper.client() as api:
            assert finish(api, api.post("/jobs", json=DIGITS).json()["id"])["status"] == "succeeded"


def test_the_api_stops_at_once_with_an_open_stream_and_makes_its_key_only_once(tmp_path):
    with instance(tmp_path, *FAKE_WORKER) as temper:
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
