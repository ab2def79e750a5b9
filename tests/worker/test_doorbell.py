"""Workers that a broker wakes: jobs start at once while it rings, and start all the same when it does not."""

import random
import signal
import time
from contextlib import contextmanager
from statistics import median

import pytest
import redis

from app.platform.broker import KEY_PREFIX
from tests.support.instance import DIGITS
from tests.support.native import FAKE_WORKER, finish, instance
from tests.support.processes import wait_until
from tests.support.proxy import proxy
from tests.support.servers import valkey
from tests.support.uploading import send

SLOWLY = 600
"""Nobody waits for a poll that is so rare: a job that starts was rung for."""


@contextmanager
def serving(tmp_path_factory, broker, **settings):
    """An API with workers that listen to a broker."""
    folder = tmp_path_factory.mktemp("temper")
    with instance(folder, *FAKE_WORKER, broker_url=broker, lease_seconds=4, **settings) as temper:
        temper.start_api()
        yield temper


@pytest.fixture(scope="module")
def broker():
    """A broker that may be broken."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="module")
def polling(tmp_path_factory, broker):
    """An instance whose workers poll as usual."""
    with serving(tmp_path_factory, broker.url, poll_seconds=0.3) as temper:
        yield temper


@pytest.fixture(scope="module")
def deaf(tmp_path_factory, broker):
    """An instance whose workers find a job by its ring or not at all."""
    with serving(tmp_path_factory, broker.url, poll_seconds=SLOWLY) as temper:
        yield temper


@pytest.fixture(autouse=True)
def fresh(broker):
    """The broker runs, and is empty."""
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()


def post(api, **wish):
    answer = api.post("/jobs", json={**DIGITS, "metadata": wish})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def ready(temper, worker):
    """Wait until a worker listens."""
    number = temper.processes.index(worker)
    wait_until(lambda: "ready." in temper.log(number))


def has_begun(api, job_id):
    progress = api.get(f"/jobs/{job_id}").json()["progress"]
    return progress and progress["step"]


def check_once_each(api, job_ids):
    for job_id in job_ids:
        job = finish(api, job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 1)


def test_a_ring_starts_a_job_at_once(deaf):
    with deaf.worker() as worker, deaf.client() as api:
        ready(deaf, worker)
        begin = time.monotonic()
        check_once_each(api, [post(api)])
        assert time.monotonic() - begin < SLOWLY / 2


@pytest.mark.slow
def test_a_ring_has_a_file_inspected_at_once(deaf):
    with deaf.worker() as worker, deaf.client() as api:
        ready(deaf, worker)
        answer = api.post("/datasets", json={"upload": send(api, b"no zip"), "name": "birds"})
        assert answer.status_code == 201
        wait_until(lambda: api.get("/datasets/birds").json()["status"] == "refused", seconds=60)


def test_a_busy_worker_leaves_rings_to_an_idle_one(deaf):
    with deaf.worker() as first, deaf.worker() as second, deaf.client() as api:
        ready(deaf, first)
        ready(deaf, second)
        long = post(api, seconds="0.5")
        wait_until(lambda: has_begun(api, long))
        # The busy worker may hold one ring, not two.
        others = [post(api), post(api)]
        wait_until(lambda: any(api.get(f"/jobs/{job_id}").json()["is_terminal"] for job_id in others), seconds=3)
        assert not api.get(f"/jobs/{long}").json()["is_terminal"]
        check_once_each(api, [long, *others])


def test_a_job_of_several_gpus_waits_for_a_worker_that_has_some(deaf):
    with deaf.client() as api:
        together = api.post("/jobs", json={**DIGITS, "gpus": 2}).json()["id"]
        deaf.environment["TEMPER_RESOURCE_CLASS"] = "cpu"
        with deaf.worker() as small:
            deaf.environment.pop("TEMPER_RESOURCE_CLASS")
            ready(deaf, small)
            check_once_each(api, [post(api)])
            assert api.get(f"/jobs/{together}").json()["status"] == "queued"
        api.post(f"/jobs/{together}/cancel")


@pytest.mark.slow
def test_five_rings_for_each_job_in_any_order_change_nothing(polling, broker):
    with polling.client() as api, redis.Redis.from_url(broker.url) as client:
        ids = [post(api) for _ in range(12)]
        key = f"{KEY_PREFIX}cpu"
        wait_until(lambda: client.llen(key) == 12)
        messages = [message for message in client.lrange(key, 0, -1) for _ in range(5)]
        random.Random(0).shuffle(messages)
        client.delete(key)
        client.rpush(key, *messages)
        with polling.worker(), polling.worker():
            check_once_each(api, ids)
            wait_until(lambda: not client.exists(key))


@pytest.mark.parametrize("fault", ["flushed", "restarted empty"])
def test_rings_that_are_lost_lose_no_job(polling, broker, fault):
    with polling.client() as api:
        ids = [post(api) for _ in range(12)]
        with polling.worker(), polling.worker():
            if fault == "flushed":
                with redis.Redis.from_url(broker.url) as client:
                    client.flushall()
            else:
                broker.kill()
                broker.start()
            check_once_each(api, ids)


@pytest.mark.parametrize("fault", ["down", pytest.param("hung", marks=pytest.mark.slow)])
def test_without_a_broker_the_api_is_as_fast_and_jobs_start_by_polling(polling, broker, fault):
    with polling.client() as api, polling.worker() as worker:
        ready(polling, worker)
        if fault == "down":
            broker.kill()
        else:
            broker.signal(signal.SIGSTOP)
        try:
            first = post(api)
            wait_until(lambda: api.get(f"/jobs/{first}").json()["status"] != "queued", seconds=20)
            taken = []
            for _ in range(30):
                begin = time.monotonic()
                last = post(api)
                taken.append(time.monotonic() - begin)
                api.post(f"/jobs/{last}/cancel")
            # Had they waited for the broker, it would be a second each.
            assert median(taken) < 0.5
            assert finish(api, first)["status"] == "succeeded"
            # It stops in time, too.
            begin = time.monotonic()
            worker.terminate()
            assert worker.wait(20) == 0
        finally:
            broker.start() if fault == "down" else broker.signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_worker_polls_while_its_broker_connection_is_dead_and_listens_again_after(polling, broker):
    with proxy(broker.port) as way, polling.client() as api, redis.Redis.from_url(broker.url) as client:
        polling.environment["TEMPER_BROKER_URL"] = f"redis://127.0.0.1:{way.port}/0"
        worker = polling.start_worker()
        polling.environment["TEMPER_BROKER_URL"] = broker.url
        try:
            ready(polling, worker)
            check_once_each(api, [post(api)])
            key = f"{KEY_PREFIX}cpu"
            wait_until(lambda: not client.exists(key))
            # Nothing arrives any more, and nothing says so.
            way.half_open()
            check_once_each(api, [post(api) for _ in range(3)])
            assert client.llen(key)
            way.heal()
            wait_until(lambda: not client.exists(key), seconds=30)
            check_once_each(api, [post(api)])
            way.half_open()
            worker.terminate()
            assert worker.wait(30) == 0
        finally:
            worker.kill()
            worker.wait()
