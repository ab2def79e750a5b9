"""The doorbell against a real broker: rung after a commit, and never at the cost of a request."""

import logging
import signal
import time

import pytest
import redis

from app.jobs import lifecycle
from app.jobs.requirements import Requirements
from app.platform.broker import KEY_PREFIX
from app.platform.queue import Doorbell
from app.schemas.job_request import parse_request
from tests.support.processes import wait_until
from tests.support.servers import valkey

SPEC = parse_request({"base_model": "digits-cnn-linf"})
TOGETHER = parse_request({"base_model": "digits-cnn-linf", "gpus": 2})


@pytest.fixture
def broker(valkey_server):
    """An empty broker, as a client sees it."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def doorbell(valkey_server):
    doorbell = Doorbell(valkey_server.url)
    doorbell.start()
    yield doorbell
    doorbell.stop()


def rings(broker, resource):
    return broker.llen(f"{KEY_PREFIX}{resource}")


@pytest.mark.parametrize(("gpus", "resource"), [(1, "cpu"), (2, "gpu"), (8, "gpu")])
def test_a_job_of_several_gpus_needs_a_worker_that_has_some(gpus, resource):
    spec = parse_request({"base_model": "digits-cnn-linf", "gpus": gpus})
    assert Requirements.of(spec).resource_class == resource


def test_it_rings_once_the_job_is_committed_for_a_worker_that_can_do_it(doorbell, broker, database, project):
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
        doorbell.ring_after_commit(session, Requirements.of(SPEC).resource_class)
        time.sleep(0.1)
        assert rings(broker, "cpu") == 0
    wait_until(lambda: rings(broker, "cpu") == 1)
    with database.writing() as session:
        lifecycle.create(session, project.id, TOGETHER)
        doorbell.ring_after_commit(session, Requirements.of(TOGETHER).resource_class)
    wait_until(lambda: rings(broker, "gpu") == 1)
    assert rings(broker, "cpu") == 1


def test_it_does_not_ring_for_what_was_rolled_back(doorbell, broker, database, project):
    def fail():
        with database.writing() as session:
            doorbell.ring_after_commit(session, Requirements.of(SPEC).resource_class)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    doorbell.ring("gpu")
    wait_until(lambda: rings(broker, "gpu") == 1)
    assert rings(broker, "cpu") == 0


def test_rings_without_a_listener_do_not_pile_up(doorbell, broker):
    for _ in range(150):
        doorbell.ring("gpu")
    doorbell.ring("cpu")
    wait_until(lambda: rings(broker, "cpu") == 1)
    assert rings(broker, "gpu") == 100


def test_all_keys_in_the_broker_are_told_from_those_of_others(doorbell, broker):
    doorbell.ring("cpu")
    wait_until(lambda: rings(broker, "cpu") == 1)
    assert all(key.startswith(KEY_PREFIX.encode()) for key in broker.scan_iter())


@pytest.mark.parametrize("fault", ["down", "hung"])
def test_an_unreachable_broker_delays_no_request_and_is_not_asked_again_at_once(fault, caplog, monkeypatch):
    monkeypatch.setattr("app.platform.queue._OPEN_SECONDS", 1.0)
    caplog.set_level(logging.INFO, logger="app.platform.queue")
    with valkey() as server:
        doorbell = Doorbell(server.url)
        doorbell.start()
        if fault == "down":
            server.kill()
        else:
            server.signal(signal.SIGSTOP)
        begin = time.monotonic()
        for _ in range(2000):
            doorbell.ring("cpu")
        assert time.monotonic() - begin < 2
        wait_until(lambda: "out of reach" in caplog.text, seconds=30)
        assert time.monotonic() - begin < 10
        wait_until(doorbell._rings.empty)
        if fault == "down":
            server.start()
        else:
            server.signal(signal.SIGCONT)
        with redis.Redis.from_url(server.url) as broker:
            before = rings(broker, "cpu")
            wait_until(lambda: doorbell.ring("cpu") or rings(broker, "cpu") > before)
        wait_until(lambda: "the queue is back" in caplog.text)
        doorbell.stop()
    assert caplog.text.count("out of reach") == 1


def test_without_a_broker_nothing_is_rung():
    doorbell = Doorbell("")
    doorbell.start()
    doorbell.ring("cpu")
    doorbell.stop()
    assert doorbell._rings.empty()
