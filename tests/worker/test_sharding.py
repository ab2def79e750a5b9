"""An evaluation in shards, by workers with a fake training process."""

import json
import threading
from dataclasses import replace

import pytest
from sqlalchemy import select
from tenacity import wait_fixed

from app.assets.registry import Registry
from app.jobs import claims, lifecycle, moves
from app.operations.garbage_collection import sweep_states
from app.schemas.job_request import parse_request
from app.storage import LocalStore
from app.tables import Attempt, Event, Job, State
from tests.support import invariants
from tests.support.fake_worker import fake_command
from tests.support.processes import processes_with, wait_until
from worker.attempt import run
from worker.files import transfer
from worker.polling import DoorbellListener, work
from worker.workplace import Workplace


@pytest.fixture
def workplace(settings, database):
    """A workplace with the fake training process, where two jobs run side by side."""
    registry = Registry(settings.models_dir, settings.datasets_dir)
    settings = settings.model_copy(update={"concurrency": 2})
    workplace = Workplace(settings, database, LocalStore(settings.objects_dir), registry, fake_command)
    yield workplace
    workplace.stopping.set()


@pytest.fixture
def post(database, project):
    """Queue an evaluation in shards that tells the fake training process what to do."""

    def post(shards=3, **wish):
        spec = parse_request({"kind": "evaluate", "base_model": "digits-cnn-linf", "metadata": wish})
        with database.writing() as session:
            return lifecycle.create(session, project.id, spec, in_shards=shards).job.id

    return post


def get(workplace, job_id):
    with workplace.database.reading() as session:
        return session.get_one(Job, job_id)


def shards_of(workplace, job_id):
    return [shard["status"] for shard in get(workplace, job_id).shards]


def work_until(workplace, condition, *, seconds=20):
    """Run a worker until a condition holds, then check the invariants."""
    workplace = replace(workplace, stopping=threading.Event())
    listener = DoorbellListener(workplace.stopping)
    worker = threading.Thread(target=work, args=(workplace, listener))
    worker.start()
    try:
        wait_until(condition, seconds=seconds)
    finally:
        listener.stop()
        worker.join()
    invariants.check(workplace.database, workplace.store)


def run_next(workplace):
    with workplace.database.writing() as session:
        claim = claims.claim(
            session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy.of(workplace.settings)
        )
    run(claim, workplace)
    return claim


def has_ended(workplace, job_id):
    return lambda: get(workplace, job_id).status in moves.TERMINAL


def test_workers_share_an_evaluation_and_merge_what_they_find(workplace, post):
    job_id = post()
    work_until(workplace, has_ended(workplace, job_id))
    job = get(workplace, job_id)
    assert (job.status, job.attempt, shards_of(workplace, job_id)) == ("succeeded", 1, ["succeeded"] * 3)
    union = job.results["after"]["union"]
    assert (union["count"], union["total"]) == (1 + 2 + 3, 12)
    report = json.loads(b"".join(workplace.store.read(job.report_key)))
    assert (report["after"]["examples"], report["after"]["part"]) == (12, None)
    with workplace.database.reading() as session:
        told = session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)).all()
    done = [event.data["done"] for event in told if event.type == "shard" and event.data["status"] == "succeeded"]
    assert done[-1] == 3
    assert [event.type for event in told][-2:] == ["finished", "job.succeeded"]
    assert "evaluated" in {event.type for event in told}


def test_only_the_shard_whose_process_is_killed_is_repeated(workplace, post):
    job_id = post(act="killed once", shard="2")
    work_until(workplace, has_ended(workplace, job_id))
    assert get(workplace, job_id).status == "succeeded"
    assert [(shard["attempt"], shard["crashes"]) for shard in get(workplace, job_id).shards] == [(1, 0), (2, 1), (1, 0)]


def test_a_shard_that_fails_ends_the_others_and_the_job(workplace, post):
    job_id = post(act="fail", shard="2", seconds="0.1")
    work_until(workplace, has_ended(workplace, job_id))
    assert get(workplace, job_id).failure["message"] == "Shard 2 of 3: no weights in it"
    assert get(workplace, job_id).failure["code"] == "bad_weights"


def test_a_cancel_ends_the_processes_of_all_shards(workplace, post):
    job_id = post(act="hang")

    def cancel_when_two_are_at_it():
        if shards_of(workplace, job_id).count("running") == 2 and get(workplace, job_id).status == "running":
            with workplace.database.writing() as session:
                lifecycle.ask(session, job_id, "cancel")
        return get(workplace, job_id).status == "cancelled"

    work_until(workplace, cancel_when_two_are_at_it)
    assert shards_of(workplace, job_id) == ["cancelled"] * 3
    assert not processes_with(job_id)


def test_a_worker_that_stops_hands_its_shards_back_and_another_goes_on(workplace, post):
    job_id = post(seconds="0.5")
    work_until(workplace, lambda: shards_of(workplace, job_id).count("running") == 2)
    assert get(workplace, job_id).status == "running"
    assert shards_of(workplace, job_id).count("queued") >= 1
    work_until(workplace, has_ended(workplace, job_id))
    assert get(workplace, job_id).status == "succeeded"
    assert all(shard["crashes"] == 0 for shard in get(workplace, job_id).shards)


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_damaged_shard_report_is_not_merged(workplace, post, monkeypatch, harm):
    monkeypatch.setattr(transfer, "FETCH_WAIT", wait_fixed(0.01))
    job_id = post(shards=2)
    shards = [run_next(workplace), run_next(workplace)]
    path = workplace.settings.objects_dir / get(workplace, shards[0].job_id).report_key
    path.unlink()
    if harm == "damaged":
        path.write_text("{}")
    assert run_next(workplace).merges == 2
    assert (get(workplace, job_id).status, get(workplace, job_id).failure["code"]) == ("failed", "storage_unavailable")
    invariants.check(workplace.database)


@pytest.mark.parametrize("act", ["killed once", "pause once"])
def test_the_verdicts_of_a_shard_are_kept_for_its_next_attempt(workplace, post, act):
    job_id = post(shards=2, states="yes", act=act, shard="1")
    first = run_next(workplace)
    assert get(workplace, first.job_id).status == "queued"
    again = run_next(workplace)
    assert (again.job_id, again.attempt) == (first.job_id, 2)
    with workplace.database.reading() as session:
        of_job = select(Attempt).where(Attempt.job_id == first.job_id)
        attempts = session.scalars(of_job.order_by(Attempt.attempt)).all()
        assert [attempt.resumed_step for attempt in attempts] == [None, 1]
    run_next(workplace)
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    with workplace.database.reading() as session:
        assert session.scalars(select(State)).all() == []
    assert not list((workplace.settings.objects_dir / "jobs").rglob("states/*/*"))


def test_a_retry_resumes_from_the_shards_that_had_succeeded(workplace, post):
    job_id = post(shards=2, states="yes", act="fail once", shard="2")
    done, _ = run_next(workplace), run_next(workplace)
    sweep_states(workplace.database, workplace.store, days=1)
    assert get(workplace, done.job_id).status == "succeeded"
    assert get(workplace, job_id).status == "failed"
    with workplace.database.writing() as session:
        again = lifecycle.retry(session, job_id).job.id
    held = [run_next(workplace) for _ in range(3)]
    with workplace.database.reading() as session:
        attempts = [session.get_one(Attempt, (each.job_id, each.attempt)) for each in held]
    assert [attempt.resumed_step for attempt in attempts] == [1, 1, None]
    assert get(workplace, again).status == "succeeded"
    invariants.check(workplace.database, workplace.store)
    sweep_states(workplace.database, workplace.store, days=-1)
    assert not list((workplace.settings.objects_dir / "jobs").rglob("states/*/*"))
