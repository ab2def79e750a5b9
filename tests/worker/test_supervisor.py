"""One job from claim to end, with a real training process that learns nothing."""

import contextlib
import errno
import hashlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app import jobs
from app.inventory import Inventory
from app.storage import LocalStore, StorageFull, StorageUnavailable
from app.tables import Attempt, Checkpoint, Event, Job, Metric
from core.spec import parse
from tests.worker.fake_worker import fake_command
from tests.worker.processes import processes_with, wait_until
from worker.supervisor import Workplace, core_command, run


@pytest.fixture
def place(settings, database):
    """A worker's place with the fake trainer."""
    inventory = Inventory(settings.models_dir, settings.datasets_dir)
    return Workplace(settings, database, LocalStore(settings.objects_dir), inventory, fake_command)


@pytest.fixture
def post(database, project):
    """Queue a job that makes the fake trainer do something."""

    def post(**wish):
        spec = parse({"base_model": "digits-cnn-linf", "metadata": wish, "name": "n"})
        with database.writing() as session:
            return jobs.create(session, project.id, spec).job.id

    return post


def claim(place):
    with place.database.writing() as session:
        return jobs.claim(
            session, worker="w", lease_seconds=place.settings.lease_seconds, max_losses=place.settings.max_losses
        )


def run_next(place):
    run(claim(place), place)


def get(place, job_id):
    with place.database.reading() as session:
        return session.get_one(Job, job_id)


def types(place, job_id):
    with place.database.reading() as session:
        return session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.seq)).all()


@contextlib.contextmanager
def running(place):
    """Run the next job in a thread until the block ends it."""
    held = claim(place)
    thread = threading.Thread(target=run, args=(held, place))
    thread.start()
    try:
        wait_until(lambda: (get(place, held.job_id).progress or {}).get("step") == 10)
        yield held
    finally:
        thread.join(20)
        assert not thread.is_alive()


def test_a_job_succeeds_with_history_curve_and_files(place, post):
    job_id = post()
    run_next(place)
    job = get(place, job_id)
    assert (job.status, job.phase, job.failure) == ("succeeded", None, None)
    assert job.results["before"]["union"]["value"] == 0.25
    assert job.results["after"]["union"]["value"] == 0.75
    history = types(place, job_id)
    assert history[:3] == ["job.created", "job.claimed", "started"]
    assert history[-4:] == ["saved", "saved", "finished", "job.succeeded"]
    with place.database.reading() as session:
        assert session.scalars(select(Metric.step).order_by(Metric.step)).all() == list(range(1, 11))
        checkpoint = session.scalars(select(Checkpoint)).one()
        assert session.scalars(select(Attempt.outcome)).one() == "succeeded"
    content = b"".join(place.store.read(checkpoint.key))
    assert content.startswith(b"weights of n")
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (checkpoint.sha256, checkpoint.size)
    assert checkpoint.key == f"jobs/{job_id}/attempts/1/checkpoint.safetensors"
    assert list(place.settings.work_dir.iterdir()) == []


def test_the_command_names_local_files_and_no_shipped_ones(place, settings):
    (settings.models_dir / "mine.safetensors").touch()
    (settings.datasets_dir / "birds.tar.xz").touch()
    (settings.datasets_dir / "more-birds.npz").touch()
    body = {"base_model": "mine", "dataset": "birds", "extra_dataset": "more-birds", "eps": {"linf": 0.1, "l1": 1}}
    spec = parse(body)
    command = core_command(jobs.Claim("job_1", 1, spec), Path("/work"), place.inventory)
    assert command[1:4] == ["-m", "core", "finetune"]
    assert command[command.index("--weights") + 1] == str(settings.models_dir / "mine.safetensors")
    assert command[command.index("--data") + 1] == str(settings.datasets_dir / "birds.tar.xz")
    assert command[command.index("--extra-data") + 1] == str(settings.datasets_dir / "more-birds.npz")
    shipped = core_command(
        jobs.Claim("job_1", 1, parse({"base_model": "digits-cnn-linf"})), Path("/w"), place.inventory
    )
    assert not {"--weights", "--data", "--extra-data"} & set(shipped)


def test_a_failure_of_the_run_is_the_jobs_failure(place, post):
    job_id = post(act="fail")
    run_next(place)
    job = get(place, job_id)
    assert (job.status, job.infra_losses) == ("failed", 0)
    assert job.failure == {
        "code": "bad_weights",
        "message": "no weights in it",
        "hint": "send weights",
        "field": "base_model",
        "retryable": False,
    }


def test_a_crash_without_a_reason_keeps_the_last_words(place, post):
    job_id = post(act="crash")
    run_next(place)
    failure = get(place, job_id).failure
    assert failure["code"] == "internal_error"
    assert "RuntimeError: the GPU fell off" in failure["message"]


def test_a_killed_training_process_is_started_again(place, post):
    job_id = post(act="killed once")
    run_next(place)
    assert (get(place, job_id).status, get(place, job_id).infra_losses) == ("queued", 1)
    run_next(place)
    assert (get(place, job_id).status, get(place, job_id).epoch) == ("succeeded", 2)


def test_a_job_that_kills_its_process_every_time_fails_in_the_end(place, post):
    place = replace(place, settings=place.settings.model_copy(update={"max_losses": 2}))
    job_id = post(act="killed")
    run_next(place)
    run_next(place)
    assert get(place, job_id).failure["code"] == "repeated_crash"
    assert claim(place) is None


def test_printed_text_that_is_no_event_is_a_warning(place, post):
    job_id = post(act="print")
    run_next(place)
    assert get(place, job_id).status == "succeeded"
    assert "warned" in types(place, job_id)


def test_a_child_that_outlives_the_training_process_is_ended_with_it(place, post):
    job_id = post(act="leave a child")
    run_next(place)
    assert get(place, job_id).status == "succeeded"
    assert processes_with(job_id) == []


@pytest.mark.parametrize("act", ["hang", "hang deaf"])
def test_a_cancelled_job_frees_the_worker_within_seconds(place, post, act):
    job_id = post(act=act)
    with running(place):
        assert processes_with(job_id)
        begin = time.monotonic()
        with place.database.writing() as session:
            jobs.request_cancel(session, job_id)
    assert time.monotonic() - begin < 5
    assert get(place, job_id).status == "cancelled"
    assert processes_with(job_id) == []
    assert types(place, job_id)[-2:] == ["job.cancelling", "job.cancelled"]


def test_a_worker_that_stops_hands_its_job_back(place, post):
    job_id = post(act="hang")
    with running(place):
        place.stopping.set()
    job = get(place, job_id)
    assert (job.status, job.infra_losses, job.lease_until) == ("queued", 0, None)
    assert types(place, job_id)[-1] == "job.handed_back"
    assert processes_with(job_id) == []


def test_a_silent_run_keeps_its_lease(place, post):
    place = replace(place, settings=place.settings.model_copy(update={"lease_seconds": 1.0}))
    job_id = post(act="hang")
    with running(place):
        time.sleep(1.5)
        assert claim(place) is None
        with place.database.writing() as session:
            jobs.request_cancel(session, job_id)


def test_a_run_whose_job_was_taken_over_is_killed_and_writes_nothing(place, post):
    job_id = post(act="hang")
    with running(place) as held, place.database.writing() as session:
        session.execute(update(Job).values(epoch=held.epoch + 1, owner="other"))
    assert processes_with(job_id) == []
    job = get(place, job_id)
    assert (job.status, job.owner) == ("running", "other")


def test_a_run_without_a_database_ends_before_its_lease(place, post, monkeypatch):
    place = replace(place, settings=place.settings.model_copy(update={"lease_seconds": 3.0}))
    job_id = post(act="hang")
    with running(place):
        begin = time.monotonic()
        for name in ("heartbeat", "look"):
            monkeypatch.setattr(jobs, name, out_of_reach)
        wait_until(lambda: not processes_with(job_id))
        assert time.monotonic() - begin < 3.0
    assert get(place, job_id).status == "running"


def out_of_reach(*_, **__):
    raise OperationalError("SELECT", {}, Exception("connection refused"))


class BrokenStore(LocalStore):
    """A store that cannot take anything."""

    def __init__(self, folder, error):
        super().__init__(folder)
        self.error = error

    def put(self, key, source):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"),
    [(StorageFull("key: no space left"), "disk_full"), (StorageUnavailable("key: gone"), "storage_unavailable")],
)
def test_a_file_that_cannot_be_stored_fails_the_job_with_a_remedy(place, post, settings, error, code):
    job_id = post()
    run_next(replace(place, store=BrokenStore(settings.objects_dir, error)))
    failure = get(place, job_id).failure
    assert (failure["code"], failure["retryable"]) == (code, True)
    assert "object store" in failure["hint"]
    again = post()
    run_next(place)
    assert get(place, again).status == "succeeded"


def test_a_file_that_arrives_damaged_fails_the_job(place, post, settings):
    class ForgetfulStore(LocalStore):
        def read(self, key, *, start=0, stop=None):
            yield b"something else"

    job_id = post()
    run_next(replace(place, store=ForgetfulStore(settings.objects_dir)))
    assert get(place, job_id).failure["code"] == "storage_unavailable"


def test_a_worker_without_room_fails_the_job_with_a_remedy(place, post, monkeypatch):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job_id = post()
    monkeypatch.setattr(Path, "write_text", no_room)
    run_next(place)
    failure = get(place, job_id).failure
    assert (failure["code"], failure["hint"][:12]) == ("disk_full", "Make room on")


def test_what_an_earlier_attempt_left_behind_is_swept_away(place, post):
    job_id = post()
    (place.settings.work_dir / job_id / "1").mkdir(parents=True)
    run_next(place)
    assert list(place.settings.work_dir.iterdir()) == []
