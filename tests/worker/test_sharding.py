"""An evaluation in shards, by workers with a real training process that learns nothing."""

import json
import threading
from dataclasses import replace

import pytest
from sqlalchemy import select

from app.assets.registry import Registry
from app.jobs import claims, lifecycle, moves
from app.operations.garbage_collection import sweep_states
from app.storage import LocalStore
from app.tables import Attempt, Event, Job, State
from core.schema.spec import parse
from tests.support import invariants
from tests.support.fake_worker import fake_command
from tests.support.processes import processes_with, wait_until
from worker import fetching
from worker.attempt import Workplace, run
from worker.bell import Bell
from worker.polling import work


@pytest.fixture
def place(settings, database):
    """A worker's place with the fake trainer, where two jobs run side by side."""
    registry = Registry(settings.models_dir, settings.datasets_dir)
    settings = settings.model_copy(update={"concurrency": 2})
    place = Workplace(settings, database, LocalStore(settings.objects_dir), registry, fake_command)
    yield place
    place.stopping.set()


@pytest.fixture
def post(database, project):
    """Queue an evaluation in shards that makes the fake trainer do something."""

    def post(shards=3, **wish):
        spec = parse({"kind": "evaluate", "base_model": "digits-cnn-linf", "metadata": wish})
        with database.writing() as session:
            return lifecycle.create(session, project.id, spec, in_shards=shards).job.id

    return post


def get(place, job_id):
    with place.database.reading() as session:
        return session.get_one(Job, job_id)


def shards_of(place, job_id):
    return [shard["status"] for shard in get(place, job_id).shards]


def work_until(place, condition, *, seconds=20):
    """Have a worker at it until something is so, and check what must hold of everything then."""
    place = replace(place, stopping=threading.Event())
    bell = Bell(place.stopping)
    worker = threading.Thread(target=work, args=(place, bell))
    worker.start()
    try:
        wait_until(condition, seconds=seconds)
    finally:
        bell.stop()
        worker.join()
    invariants.check(place.database, place.store)


def run_next(place):
    with place.database.writing() as session:
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy.of(place.settings))
    run(claim, place)
    return claim


def has_ended(place, job_id):
    return lambda: get(place, job_id).status in moves.TERMINAL


def test_workers_share_an_evaluation_and_merge_what_they_find(place, post):
    job_id = post()
    work_until(place, has_ended(place, job_id))
    job = get(place, job_id)
    assert (job.status, job.attempt, shards_of(place, job_id)) == ("succeeded", 1, ["succeeded"] * 3)
    union = job.results["after"]["union"]
    assert (union["count"], union["total"]) == (1 + 2 + 3, 12)
    report = json.loads(b"".join(place.store.read(job.report_key)))
    assert (report["after"]["examples"], report["after"]["part"]) == (12, None)
    with place.database.reading() as session:
        told = session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)).all()
    done = [event.data["done"] for event in told if event.type == "shard" and event.data["status"] == "succeeded"]
    assert done[-1] == 3
    assert [event.type for event in told][-2:] == ["finished", "job.succeeded"]
    assert "evaluated" in {event.type for event in told}


def test_a_shard_whose_process_is_killed_is_made_again_and_no_other(place, post):
    job_id = post(act="killed once", shard="2")
    work_until(place, has_ended(place, job_id))
    assert get(place, job_id).status == "succeeded"
    assert [(shard["attempt"], shard["crashes"]) for shard in get(place, job_id).shards] == [(1, 0), (2, 1), (1, 0)]


def test_a_shard_that_fails_ends_the_others_and_the_job(place, post):
    job_id = post(act="fail", shard="2", seconds="0.1")
    work_until(place, has_ended(place, job_id))
    assert get(place, job_id).failure["message"] == "Shard 2 of 3: no weights in it"
    assert get(place, job_id).failure["code"] == "bad_weights"


def test_a_cancel_ends_the_processes_of_all_shards(place, post):
    job_id = post(act="hang")

    def cancel_when_two_are_at_it():
        if shards_of(place, job_id).count("running") == 2 and get(place, job_id).status == "running":
            with place.database.writing() as session:
                lifecycle.ask(session, job_id, "cancel")
        return get(place, job_id).status == "cancelled"

    work_until(place, cancel_when_two_are_at_it)
    assert shards_of(place, job_id) == ["cancelled"] * 3
    assert not processes_with(job_id)


def test_a_worker_that_stops_hands_its_shards_back_and_another_goes_on(place, post):
    job_id = post(seconds="0.5")
    work_until(place, lambda: shards_of(place, job_id).count("running") == 2)
    assert get(place, job_id).status == "running"
    assert shards_of(place, job_id).count("queued") >= 1
    work_until(place, has_ended(place, job_id))
    assert get(place, job_id).status == "succeeded"
    assert all(shard["crashes"] == 0 for shard in get(place, job_id).shards)


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_what_a_shard_has_found_is_not_merged_when_it_is_harmed(place, post, monkeypatch, harm):
    monkeypatch.setattr(fetching, "PAUSES", (0.01,))
    job_id = post(shards=2)
    shards = [run_next(place), run_next(place)]
    path = place.settings.objects_dir / get(place, shards[0].job_id).report_key
    path.unlink()
    if harm == "damaged":
        path.write_text("{}")
    assert run_next(place).merges == 2
    assert (get(place, job_id).status, get(place, job_id).failure["code"]) == ("failed", "storage_unavailable")
    invariants.check(place.database)


@pytest.mark.parametrize("act", ["killed once", "pause once"])
def test_what_a_shard_has_found_is_kept_for_its_next_attempt(place, post, act):
    job_id = post(shards=2, states="yes", act=act, shard="1")
    first = run_next(place)
    assert get(place, first.job_id).status == "queued"
    again = run_next(place)
    assert (again.job_id, again.attempt) == (first.job_id, 2)
    with place.database.reading() as session:
        of_job = select(Attempt).where(Attempt.job_id == first.job_id)
        attempts = session.scalars(of_job.order_by(Attempt.attempt)).all()
        assert [attempt.resumed_step for attempt in attempts] == [None, 1]
    run_next(place)
    run_next(place)
    assert get(place, job_id).status == "succeeded"
    with place.database.reading() as session:
        assert session.scalars(select(State)).all() == []
    assert not list((place.settings.objects_dir / "jobs").rglob("states/*/*"))


def test_a_retry_goes_on_from_what_shards_had_found_that_had_succeeded(place, post):
    job_id = post(shards=2, states="yes", act="fail once", shard="2")
    done, _ = run_next(place), run_next(place)
    sweep_states(place.database, place.store, days=1)
    assert get(place, done.job_id).status == "succeeded"
    assert get(place, job_id).status == "failed"
    with place.database.writing() as session:
        again = lifecycle.retry(session, job_id).job.id
    held = [run_next(place) for _ in range(3)]
    with place.database.reading() as session:
        attempts = [session.get_one(Attempt, (each.job_id, each.attempt)) for each in held]
    assert [attempt.resumed_step for attempt in attempts] == [1, 1, None]
    assert get(place, again).status == "succeeded"
    invariants.check(place.database, place.store)
    sweep_states(place.database, place.store, days=-1)
    assert not list((place.settings.objects_dir / "jobs").rglob("states/*/*"))
