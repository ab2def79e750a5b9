"""What Prometheus is told, read with its own parser: the same in every process, for it is what the rows say."""

import httpx2
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.jobs import claims, lifecycle
from app.jobs.watch import Watch
from app.operations import metrics
from app.operations.metrics import Metrics
from app.platform.database import seconds_from_now
from app.platform.queue import Doorbell
from app.projects import totals
from app.schemas import Failure
from app.schemas.job_request import parse_request
from app.tables import Attempt, Delivery, Job
from app.webhooks import subscriptions
from tests.support.instance import DIGITS
from tests.support.native import instance as native_instance
from tests.support.processes import wait_until
from tests.support.servers import free_port, valkey

SPEC = parse_request(DIGITS)
NO_BROKER = Doorbell("")
FAILURE = Failure(code="internal_error", message="", hint="", field=None, retryable=False)


def told(text):
    """Every sample by its name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def numbers(database, doorbell=NO_BROKER):
    return told(generate_latest(Metrics(database, Watch(database), doorbell).registry).decode())


def test_jobs_and_attempts_are_counted_from_the_rows(database, project):
    with database.writing() as session:
        for _ in range(3):
            lifecycle.create(session, project.id, SPEC)
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
        claims.hand_back(session, claim)
        claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
    said = numbers(database)
    assert said["temper_database_up",] == 1
    assert said["temper_queue_depth",] == said["temper_jobs", ("status", "queued")] == 2
    assert said["temper_jobs", ("status", "running")] == 1
    assert said["temper_jobs", ("status", "failed")] == 0
    assert said["temper_attempts_total", ("outcome", "handed_back")] == 1
    assert said["temper_attempts_lost_total",] == 0
    assert said["temper_attempts_under_way",] == 1
    assert said["temper_claim_latency_seconds_count",] >= 1
    assert said["temper_claim_latency_seconds_bucket", ("le", "+Inf")] == said["temper_claim_latency_seconds_count",]
    assert 0 <= said["temper_worker_seconds_total", ("device", "cpu")] < 60
    assert 0 <= said["temper_queue_oldest_seconds",] < 60


def test_an_overdue_webhook_shows_as_lag(database, project):
    with database.writing() as session:
        webhook = subscriptions.create(
            session, project.id, url="https://nowhere.invalid/", events=("job.queued",), description="", limit=1
        )
        lifecycle.create(session, project.id, SPEC)
        session.flush()
        due = subscriptions.seconds_from_now(-90)
        session.execute(update(Delivery).values(next_attempt_at=due, error="answered 500"))
    said = numbers(database)
    assert said["temper_webhook_deliveries", ("status", "pending")] == 1
    assert said["temper_webhook_deliveries_failing",] == 1
    assert 89 < said["temper_webhook_lag_seconds",] < 150
    with database.writing() as session:
        subscriptions.change(session, session.merge(webhook), {"disabled": True})
    assert numbers(database)["temper_webhook_lag_seconds",] == 0


def test_gpu_time_counts_every_gpu_and_outlives_the_job(database, project):
    before = numbers(database)["temper_gpu_seconds_total",]
    with database.writing() as session:
        for gpus, device in ((8, "cpu"), (8, None), (2, "NVIDIA H100"), (4, "NVIDIA H100")):
            job_id = lifecycle.create(session, project.id, parse_request(DIGITS | {"gpus": gpus})).job.id
            claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
            begun = {"started_at": seconds_from_now(-100), "device": device}
            session.execute(update(Attempt).where(Attempt.job_id == job_id).values(begun))
            claims.fail(session, claim, FAILURE)
    # 100 seconds of two GPUs and of four.
    assert 600 <= numbers(database)["temper_gpu_seconds_total",] - before < 700
    with database.writing() as session:
        lifecycle.remove(session, job_id)
    assert 600 <= numbers(database)["temper_gpu_seconds_total",] - before < 700


def test_no_counter_falls_when_a_job_is_deleted(database, project, monkeypatch):
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0)
    retry_policy = claims.RetryPolicy(max_crashes=5, backoff_seconds=0)
    with database.writing() as session:
        job_id = lifecycle.create(session, project.id, SPEC).job.id
        session.execute(update(Job).values(created_at=seconds_from_now(-50)))
        lost = claims.claim(session, worker="w", lease_seconds=30, retry_policy=retry_policy)
        claims.record_crash(session, lost, code="killed", retry_policy=retry_policy)
        claims.fail(session, claims.claim(session, worker="w", lease_seconds=30, retry_policy=retry_policy), FAILURE)
        session.execute(update(Attempt).values(started_at=seconds_from_now(-20)))
        totals.recount(session)
        lifecycle.create(session, project.id, SPEC)
        claims.claim(session, worker="w", lease_seconds=30, retry_policy=retry_policy)
    before = counters(database)
    assert before["temper_attempts_total", ("outcome", "lost")] == before["temper_attempts_lost_total",] == 1
    assert before["temper_attempts_total", ("outcome", "failed")] == 1
    assert 39 < before["temper_worker_seconds_total", ("device", "cpu")] < 50
    assert before["temper_claim_latency_seconds_bucket", ("le", "60.0")] == 2
    assert before["temper_claim_latency_seconds_bucket", ("le", "10.0")] == 1
    assert 29 < before["temper_claim_latency_seconds_sum",] < 50
    with database.writing() as session:
        lifecycle.remove(session, job_id)
    assert counters(database) == pytest.approx(before)


def counters(database):
    text = generate_latest(Metrics(database, Watch(database), NO_BROKER).registry).decode()
    families = [each for each in text_string_to_metric_families(text) if each.type in ("counter", "histogram")]
    of_instance = [each for each in families if not each.name.startswith("temper_http")]
    return {(each.name, *sorted(each.labels.items())): each.value for family in of_instance for each in family.samples}


def test_a_counter_stays_where_it_was_told_to_be(database, project, monkeypatch):
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0)
    registry = Metrics(database, Watch(database), NO_BROKER).registry
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
        session.execute(update(Attempt).values(started_at=seconds_from_now(-30), device="cpu"))
    of_workers = "temper_worker_seconds_total", ("device", "cpu")
    before = told(generate_latest(registry).decode())[of_workers]
    assert 30 <= before < 60
    with database.writing() as session:
        claims.fail(session, claim, FAILURE)
        session.execute(update(Attempt).values(ended_at=seconds_from_now(-1)))
        totals.recount(session)
    assert told(generate_latest(registry).decode())[of_workers] == before


def test_a_broker_that_is_given_up_shows(database, monkeypatch):
    monkeypatch.setattr("app.platform.queue._OPEN_SECONDS", 0.5)
    name = ("temper_broker_circuit_open",)
    assert name not in numbers(database)
    with valkey() as server:
        doorbell = Doorbell(server.url)
        doorbell.start()
        assert numbers(database, doorbell)[name] == 0
        server.kill()
        wait_until(lambda: doorbell.ring("cpu") or numbers(database, doorbell)[name] == 1)
        server.start()
        wait_until(lambda: doorbell.ring("cpu") or numbers(database, doorbell)[name] == 0)
        doorbell.stop()


def test_rows_are_not_read_again_for_every_scrape(database, project, monkeypatch):
    numbers_of = Metrics(database, Watch(database), NO_BROKER).registry
    before = generate_latest(numbers_of)
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
    assert generate_latest(numbers_of) == before
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0)
    assert told(generate_latest(numbers_of).decode())["temper_queue_depth",] == 1


def test_a_port_of_its_own_serves_requests_by_route_and_never_by_address(tmp_path):
    port = free_port()
    with native_instance(tmp_path, metrics_port=port) as temper:
        api = temper.start_api()
        with temper.client() as client:
            client.get("/jobs/job_made_up")
            client.get("/v1/jobs")
            client.get("/made/up")
            for number in range(3):
                client.request(f"MADE{number}", "/v1/jobs")
            assert client.get("/metrics").status_code == 404
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        api.terminate()
        api.wait(10)
    said = told(text)
    counted = "temper_http_requests_total"
    assert said[counted, ("method", "GET"), ("route", "/jobs/{job_id}"), ("status", "404")] == 1
    assert said["temper_http_request_seconds_count", ("route", "/jobs/{job_id}")] == 1
    assert said[counted, ("method", "any"), ("route", "none"), ("status", "404")] == 2
    assert said[counted, ("method", "other"), ("route", "/jobs"), ("status", "405")] == 3
    assert said["temper_streams_open",] == 0
    assert "MADE" not in text
    assert "made_up" not in text
    assert "made/up" not in text
