"""An attempt at one job from claim to end, with a fake training process."""

import contextlib
import errno
import hashlib
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app.assets.registry import Registry
from app.jobs import claims, ingest, lifecycle
from app.jobs.leases import Claim, LeaseLost
from app.jobs.queries import training_curve
from app.schemas.job_request import parse_request
from app.storage import LocalStore, StorageFull, StorageUnavailable
from app.tables import Attempt, Checkpoint, Delivery, Event, Job, Metric, State
from core.schema.events import Saved
from core.schema.spec import parse
from tests.support import invariants
from tests.support.fake_worker import fake_command
from tests.support.native import free_port
from tests.support.processes import processes_with, wait_until
from worker import host
from worker.attempt import run
from worker.processes.training_process import core_command
from worker.workplace import Workplace


@pytest.fixture
def workplace(settings, database, monkeypatch):
    """A workplace with the fake training process, whose short runs are recorded as often as long ones."""
    monkeypatch.setattr("worker.processes.training_process._BATCH_SECONDS", 0.2)
    registry = Registry(settings.models_dir, settings.datasets_dir)
    return Workplace(settings, database, LocalStore(settings.objects_dir), registry, fake_command)


@pytest.fixture
def post(database, project):
    """Queue a job that tells the fake training process what to do."""

    def post(*, base_model="digits-cnn-linf", **wish):
        spec = parse_request({"base_model": base_model, "metadata": wish, "name": "n"})
        with database.writing() as session:
            return lifecycle.create(session, project.id, spec).job.id

    return post


def claim(workplace):
    with workplace.database.writing() as session:
        settings = workplace.settings
        retry_policy = claims.RetryPolicy.of(settings)
        return claims.claim(session, worker="w", lease_seconds=settings.lease_seconds, retry_policy=retry_policy)


def run_next(workplace):
    run(claim(workplace), workplace)


def get(workplace, job_id):
    with workplace.database.reading() as session:
        return session.get_one(Job, job_id)


def types(workplace, job_id):
    with workplace.database.reading() as session:
        return session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.seq)).all()


def told(workplace, held, type_):
    """Count what the attempt has said so far."""
    if type_ == "stepped":
        return len(steps_told(workplace, held.attempt))
    return types(workplace, held.job_id).count(type_)


@contextlib.contextmanager
def running(workplace, *, says="stepped", count=10):
    """Run the next job in a thread until the block ends it, which begins when the job has said something so often."""
    held = claim(workplace)
    thread = threading.Thread(target=run, args=(held, workplace))
    thread.start()
    try:
        wait_until(lambda: told(workplace, held, says) >= count)
        yield held
    finally:
        thread.join(20)
        assert not thread.is_alive()


def test_a_job_succeeds_with_history_curve_and_files(workplace, post):
    job_id = post()
    run_next(workplace)
    job = get(workplace, job_id)
    assert (job.status, job.phase, job.failure) == ("succeeded", None, None)
    assert job.results["before"]["union"]["value"] == 0.25
    assert job.results["after"]["union"]["value"] == 0.75
    history = types(workplace, job_id)
    assert history[:3] == ["job.created", "job.claimed", "started"]
    assert history[-4:] == ["saved", "saved", "finished", "job.succeeded"]
    with workplace.database.reading() as session:
        assert session.scalars(select(Metric.step).order_by(Metric.step)).all() == list(range(1, 11))
        checkpoint = session.scalars(select(Checkpoint)).one()
        assert session.scalars(select(Attempt.outcome)).one() == "succeeded"
    content = b"".join(workplace.store.read(checkpoint.key))
    assert content.startswith(b"weights of n")
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (checkpoint.sha256, checkpoint.size)
    assert checkpoint.key == f"jobs/{job_id}/attempts/1/checkpoint.safetensors"
    assert list(workplace.settings.work_dir.iterdir()) == []


def test_a_job_with_a_webhook_runs_and_queues_a_delivery(workplace, database, project):
    spec = parse_request({"base_model": "digits-cnn-linf", "webhook": {"url": "https://example.com/secret-path"}})
    with database.writing() as session:
        job_id = lifecycle.create(session, project.id, spec, most_webhooks=1).job.id
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    with workplace.database.reading() as session:
        assert session.scalars(select(Delivery.type)).all() == ["job.succeeded"]


def test_the_command_names_local_files_and_no_shipped_ones(workplace, settings):
    (settings.models_dir / "mine.safetensors").touch()
    (settings.datasets_dir / "birds.tar.xz").touch()
    (settings.datasets_dir / "more-birds.npz").touch()
    body = {"base_model": "mine", "dataset": "birds", "extra_dataset": "more-birds", "eps": {"linf": 0.1, "l1": 1}}
    spec = parse(body)
    command = core_command(Claim("job_1", 1, spec), Path("/work"), workplace.registry)
    assert command[1:3] == ["-m", "core.confinement"]
    run_begins = command.index("core")
    assert command[run_begins - 2 : run_begins + 2] == [sys.executable, "-m", "core", "finetune"]
    # It may read these files, and change its work folder.
    confinement = command[3 : run_begins - 2]
    named = {command[command.index(option) + 1] for option in ("--weights", "--data", "--extra-data")}
    read = {confinement[place + 1] for place, part in enumerate(confinement) if part == "--read"}
    assert named <= read
    assert not any(str(settings.data_dir) in path for path in read - named)
    assert confinement[confinement.index("--write") + 1] == "/work"
    assert confinement.count("--write") == 1
    assert command[command.index("--weights") + 1] == str(settings.models_dir / "mine.safetensors")
    assert command[command.index("--data") + 1] == str(settings.datasets_dir / "birds.tar.xz")
    assert command[command.index("--extra-data") + 1] == str(settings.datasets_dir / "more-birds.npz")
    shipped = core_command(Claim("job_1", 1, parse({"base_model": "digits-cnn-linf"})), Path("/w"), workplace.registry)
    assert not {"--weights", "--data", "--extra-data"} & set(shipped)


def test_a_failure_of_the_run_is_the_jobs_failure(workplace, post):
    job_id = post(act="fail")
    run_next(workplace)
    job = get(workplace, job_id)
    assert (job.status, job.crashes) == ("failed", 0)
    assert job.failure == {
        "code": "bad_weights",
        "message": "no weights in it",
        "hint": "send weights",
        "field": "base_model",
        "retryable": False,
    }


def test_a_failure_without_an_error_event_shows_the_last_stderr_output(workplace, post):
    job_id = post(act="crash")
    run_next(workplace)
    failure = get(workplace, job_id).failure
    assert failure["code"] == "internal_error"
    assert "RuntimeError: the GPU fell off" in failure["message"]


def test_a_killed_training_process_is_started_again(workplace, post):
    job_id = post(act="killed once")
    run_next(workplace)
    assert (get(workplace, job_id).status, get(workplace, job_id).crashes) == ("queued", 1)
    run_next(workplace)
    assert (get(workplace, job_id).status, get(workplace, job_id).attempt) == ("succeeded", 2)


def test_a_job_that_kills_its_process_every_time_fails_in_the_end(workplace, post):
    workplace = replace(workplace, settings=workplace.settings.model_copy(update={"max_crashes": 2}))
    job_id = post(act="killed")
    run_next(workplace)
    run_next(workplace)
    assert get(workplace, job_id).failure["code"] == "repeated_crash"
    assert claim(workplace) is None
    invariants.check(workplace.database, workplace.store)


@pytest.fixture
def counter(settings, monkeypatch):
    """The kernel's count of memory kills, which the fake training process can raise."""
    file = settings.work_dir / "memory.events"
    file.write_text("low 0\noom_kill 7\n")
    monkeypatch.setattr(host, "_counters", lambda: [file])
    yield
    file.unlink()


@pytest.mark.usefixtures("counter")
def test_a_run_that_the_kernel_kills_twice_when_memory_runs_out_fails_with_a_remedy(workplace, post):
    job_id = post(act="killed for want of memory")
    run_next(workplace)
    job = get(workplace, job_id)
    assert (job.status, job.crashes) == ("queued", 1)
    run_next(workplace)
    failure = get(workplace, job_id).failure
    assert (failure["code"], failure["retryable"]) == ("host_out_of_memory", False)
    assert "give the worker more memory" in failure["hint"]
    with workplace.database.reading() as session:
        assert set(session.scalars(select(Attempt.cause_code))) == {"host_out_of_memory"}
    invariants.check(workplace.database, workplace.store)


@pytest.mark.usefixtures("counter")
def test_other_kills_do_not_count_as_out_of_memory(workplace, post):
    job_id = post(act="killed")
    run_next(workplace)
    run_next(workplace)
    assert get(workplace, job_id).status == "queued"


def steps_told(workplace, attempt):
    with workplace.database.reading() as session:
        return session.scalars(select(Metric.step).where(Metric.attempt == attempt).order_by(Metric.step)).all()


def warnings(workplace, job_id):
    with workplace.database.reading() as session:
        return [event.data["code"] for event in session.scalars(select(Event).where(Event.type == "warned"))]


def states_of(workplace, job_id, kind="state"):
    return sorted(path.name for path in (workplace.settings.objects_dir / "jobs" / job_id).rglob(f"*states/*/{kind}-*"))


@pytest.mark.parametrize("act", ["killed once", "pause once"])
def test_the_next_attempt_goes_on_from_the_last_state(workplace, post, act):
    job_id = post(states="yes", cut="6", act=act)
    run_next(workplace)
    job = get(workplace, job_id)
    assert (job.status, job.crashes) == ("queued", int(act == "killed once"))
    # Of each kind the store holds the last two, however many there were.
    assert states_of(workplace, job_id) == ["state-5.safetensors", "state-6.safetensors"]
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    assert "resumed" in types(workplace, job_id)
    assert "warned" not in types(workplace, job_id)
    assert (steps_told(workplace, 1), steps_told(workplace, 2)) == ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10])
    with workplace.database.reading() as session:
        curve = training_curve(session, get(workplace, job_id), after_step=0, max_points=100)
        assert [(metric.step, metric.attempt) for metric in curve] == [(n, 1 if n <= 6 else 2) for n in range(1, 11)]
        few = training_curve(session, get(workplace, job_id), after_step=2, max_points=4)
        assert [metric.step for metric in few] == [4, 6, 8, 10]
        assert session.scalars(select(State)).all() == []
    assert states_of(workplace, job_id) == []


def test_the_next_attempt_goes_on_in_the_evaluation_that_belongs_to_a_training_run(workplace, post):
    job_id = post(states="yes", verdicts="yes", act="killed once")
    run_next(workplace)
    assert states_of(workplace, job_id, "verdicts") == ["verdicts-1.safetensors"]
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    assert steps_told(workplace, 2) == []
    with workplace.database.reading() as session:
        told = session.scalars(select(Event.data).where(Event.job_id == job_id, Event.type == "saved")).all()
        assert [data["step"] for data in told if data["kind"] == "verdicts"] == [1, 2]
        resumed = session.scalars(select(Attempt.resumed_step).order_by(Attempt.attempt)).all()
        assert resumed == [None, 10], "a step of its training"
        assert session.scalars(select(State)).all() == []
    assert states_of(workplace, job_id, "verdicts") == []


def test_a_worker_that_stops_hands_its_job_back_with_the_state(workplace, post):
    job_id = post(states="yes", act="hang")
    with running(workplace):
        workplace.stopping.set()
    assert states_of(workplace, job_id) == ["state-10.safetensors", "state-9.safetensors"]
    workplace.stopping.clear()
    with running(workplace, says="resumed", count=1) as held, workplace.database.writing() as session:
        lifecycle.ask(session, job_id, "cancel")
    assert held.attempt == 2
    assert steps_told(workplace, 2) == []
    assert get(workplace, job_id).status == "cancelled"


@pytest.mark.parametrize("harm", ["damaged", "gone"])
@pytest.mark.parametrize(("harmed", "first_step"), [(["6"], 6), (["6", "5"], 1)])
def test_a_damaged_state_is_skipped_for_the_one_before_it_with_a_warning(workplace, post, harm, harmed, first_step):
    job_id = post(states="yes", cut="6", act="killed once")
    run_next(workplace)
    for number in harmed:
        (state,) = (workplace.settings.objects_dir / "jobs" / job_id).rglob(f"state-{number}.safetensors")
        state.unlink()
        if harm == "damaged":
            state.write_text("7")
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    assert steps_told(workplace, 2) == list(range(first_step, 11))
    assert warnings(workplace, job_id).count("state_unavailable") == len(harmed)


def test_a_result_that_cannot_be_stored_fails_the_job_and_a_replaced_state_does_not(workplace, post, settings):
    job_id = post(states="yes")
    run_next(replace(workplace, store=BrokenStore(settings.objects_dir, StorageUnavailable("key: gone"))))
    # Ten states in a millisecond: nearly all were replaced before the worker had seen them, the last one was not.
    assert get(workplace, job_id).failure["code"] == "storage_unavailable"


def test_a_state_that_is_not_ours_to_save_changes_nothing(workplace, post):
    job_id = post(states="yes", cut="6", act="killed once")
    run_next(workplace)
    lost = claim(workplace)
    with workplace.database.writing() as session:
        session.execute(update(Job).values(attempt=lost.attempt + 1, owner="other"))
    saved = Saved(kind="state", path="x", sha256="0" * 64, size=1, step=9, epoch=0.9)
    with pytest.raises(LeaseLost), workplace.database.writing() as session:
        ingest.save_state(session, lost, saved, name="x", key="k")
    assert states_of(workplace, job_id) == ["state-5.safetensors", "state-6.safetensors"]


def test_a_job_on_several_gpus_is_started_by_torchrun(workplace):
    spec = parse_request({"base_model": "digits-cnn-linf", "gpus": 4})
    command = core_command(Claim("job_1", 1, spec), Path("/w"), workplace.registry)
    launcher, torchrun, run = (command.index(name) for name in ("core.confinement", "torch.distributed.run", "core"))
    assert launcher < torchrun < run
    assert command[launcher:torchrun][-3:] == ["--launcher", sys.executable, "-m"]
    assert command[torchrun : torchrun + 6] == [
        *("torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "4")
    ]
    # Each of its processes then takes from itself what it shares with the launcher.
    assert command[torchrun + 6 : torchrun + 8] == ["-m", "core.confinement"]
    assert command[run - 3 : run] == ["--narrow", sys.executable, "-m"]


def test_printed_text_that_is_not_an_event_becomes_a_warning(workplace, post):
    job_id = post(act="print")
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    assert "warned" in types(workplace, job_id)


@pytest.mark.parametrize("act", ["leave a child", "leave a child in another group"])
def test_a_child_that_outlives_the_training_process_is_ended_with_it(workplace, post, act):
    job_id = post(act=act)
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    assert processes_with(job_id) == []


@pytest.mark.parametrize("act", ["hang", "hang deaf"])
def test_a_cancelled_job_frees_the_worker_within_seconds(workplace, post, act):
    job_id = post(act=act)
    with running(workplace):
        assert processes_with(job_id)
        begin = time.monotonic()
        with workplace.database.writing() as session:
            lifecycle.ask(session, job_id, "cancel")
    assert time.monotonic() - begin < 15
    assert get(workplace, job_id).status == "cancelled"
    assert processes_with(job_id) == []
    assert types(workplace, job_id)[-2:] == ["job.cancelling", "job.cancelled"]


def ask(workplace, job_id, action):
    with workplace.database.writing() as session:
        return lifecycle.ask(session, job_id, action)


def test_a_paused_job_frees_its_worker_and_goes_on_from_where_it_was(workplace, post):
    job_id, other = post(seconds="0.1"), post()
    with running(workplace, count=2):
        ask(workplace, job_id, "pause")
    job = get(workplace, job_id)
    assert (job.status, job.phase, job.lease_until) == ("paused", None, None)
    assert processes_with(job_id) == []
    run_next(workplace)
    assert get(workplace, other).status == "succeeded"
    assert claim(workplace) is None
    ask(workplace, job_id, "resume")
    run_next(workplace)
    job = get(workplace, job_id)
    assert (job.status, job.attempt, job.crashes) == ("succeeded", 2, 0)
    first, second = steps_of(workplace, job_id, 1), steps_of(workplace, job_id, 2)
    assert len(first) < 10
    assert first + second == list(range(1, 11))
    with workplace.database.reading() as session:
        attempts = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt)).all()
    assert [(attempt.outcome, attempt.resumed_step) for attempt in attempts] == [
        ("paused", None),
        ("succeeded", len(first)),
    ]
    assert {attempt.device for attempt in attempts} == {"cpu"}
    invariants.check(workplace.database, workplace.store)


def steps_of(workplace, job_id, attempt):
    with workplace.database.reading() as session:
        of_attempt = Metric.job_id == job_id, Metric.attempt == attempt
        return session.scalars(select(Metric.step).where(*of_attempt).order_by(Metric.step)).all()


def test_a_process_that_will_not_pause_is_killed_after_the_grace(workplace, post, monkeypatch):
    monkeypatch.setattr("worker.lease.PAUSE_GRACE_SECONDS", 0.3)
    job_id = post(act="hang deaf", states="yes")
    with running(workplace):
        ask(workplace, job_id, "pause")
    assert (get(workplace, job_id).status, get(workplace, job_id).crashes) == ("paused", 0)


def test_a_cancel_cuts_a_long_pause_short(workplace, post):
    job_id = post(act="hang deaf")
    with running(workplace):
        ask(workplace, job_id, "pause")
        time.sleep(0.2)
        begin = time.monotonic()
        ask(workplace, job_id, "cancel")
    assert time.monotonic() - begin < 15
    assert get(workplace, job_id).status == "cancelled"


def test_a_stopped_job_delivers_what_it_has_and_says_so(workplace, post):
    job_id = post(seconds="0.1")
    with running(workplace, count=2):
        ask(workplace, job_id, "stop")
    job = get(workplace, job_id)
    assert (job.status, job.stopped_early) == ("succeeded", True)
    assert 2 <= job.progress["step"] < 10
    assert job.checkpoint_id
    assert warnings(workplace, job_id) == ["stopped_early"]
    invariants.check(workplace.database, workplace.store)


def test_a_stalled_process_is_killed_and_counts_as_a_crash(workplace, post, monkeypatch):
    monkeypatch.setattr("worker.attempt.STALL_SECONDS", 0.5)
    job_id = post(act="stop itself", cut="1", states="yes")
    begin = time.monotonic()
    run_next(workplace)
    assert time.monotonic() - begin < 30
    job = get(workplace, job_id)
    assert (job.status, job.crashes) == ("queued", 1)
    with workplace.database.reading() as session:
        attempt = session.scalars(select(Attempt)).one()
    assert attempt.outcome == "lost"
    assert "reported no event and changed no file" in attempt.cause
    assert processes_with(job_id) == []


def test_a_job_that_asks_for_more_gpus_than_there_are_is_refused_before_it_starts(workplace, post, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with workplace.database.writing() as session:
        project_id = session.get_one(Job, post()).project_id
        spec = parse_request({"base_model": "digits-cnn-linf", "gpus": 4, "priority": 1})
        job_id = lifecycle.create(session, project_id, spec).job.id
    run_next(workplace)
    job = get(workplace, job_id)
    assert (job.status, job.failure["field"]) == ("failed", "gpus")
    assert job.failure["message"] == "The job asks for 4 GPUs; the worker that took it has 1."
    assert types(workplace, job_id) == ["job.created", "job.claimed", "job.failed"]


def test_a_worker_that_stops_hands_its_job_back(workplace, post):
    job_id = post(act="hang")
    with running(workplace):
        workplace.stopping.set()
    job = get(workplace, job_id)
    assert (job.status, job.crashes, job.lease_until) == ("queued", 0, None)
    assert types(workplace, job_id)[-1] == "job.handed_back"
    assert processes_with(job_id) == []


def test_a_silent_run_keeps_its_lease(workplace, post):
    workplace = replace(workplace, settings=workplace.settings.model_copy(update={"lease_seconds": 2.0}))
    job_id = post(act="hang")
    with running(workplace):
        time.sleep(2.5)
        assert claim(workplace) is None
        with workplace.database.writing() as session:
            lifecycle.ask(session, job_id, "cancel")


def test_a_run_whose_job_was_taken_over_is_killed_and_writes_nothing(workplace, post):
    job_id = post(act="hang")
    with running(workplace) as held, workplace.database.writing() as session:
        session.execute(update(Job).values(attempt=held.attempt + 1, owner="other"))
    assert processes_with(job_id) == []
    job = get(workplace, job_id)
    assert (job.status, job.owner) == ("running", "other")


def test_a_run_without_a_database_ends_before_its_lease(workplace, post, monkeypatch):
    workplace = replace(workplace, settings=workplace.settings.model_copy(update={"lease_seconds": 6.0}))
    job_id = post(act="hang")
    with running(workplace):
        begin = time.monotonic()
        for name in ("heartbeat", "read_status"):
            monkeypatch.setattr(claims, name, out_of_reach)
        wait_until(lambda: not processes_with(job_id))
        assert time.monotonic() - begin < 6.0
    assert get(workplace, job_id).status == "running"


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
def test_a_file_that_cannot_be_stored_fails_the_job_with_a_remedy(workplace, post, settings, error, code):
    job_id = post()
    run_next(replace(workplace, store=BrokenStore(settings.objects_dir, error)))
    failure = get(workplace, job_id).failure
    assert (failure["code"], failure["retryable"]) == (code, True)
    assert "object store" in failure["hint"]
    again = post()
    run_next(workplace)
    assert get(workplace, again).status == "succeeded"


def test_results_that_cannot_be_stored_are_kept_for_a_week(workplace, post, settings):
    job_id = post()
    run_next(replace(workplace, store=BrokenStore(settings.objects_dir, StorageUnavailable("key: gone"))))
    kept = settings.kept_dir / f"{job_id}-1"
    hint = get(workplace, job_id).failure["hint"]
    assert "retry the job" in hint
    assert f"kept for 7 days as kept/{job_id}-1 in the data folder of the worker on " in hint
    # The checkpoint failed, so the run was not let on to its report.
    assert (kept / "checkpoint.safetensors").read_bytes().startswith(b"weights of n")
    assert list(settings.work_dir.iterdir()) == []
    post()
    run_next(workplace)
    assert kept.is_dir()
    os.utime(kept, (time.time() - 8 * 86400,) * 2)
    post()
    run_next(workplace)
    assert not kept.exists()


def test_results_are_not_kept_on_the_disk_of_a_full_local_store(workplace, post, settings):
    job_id = post()
    run_next(replace(workplace, store=BrokenStore(settings.objects_dir, StorageFull("key: no space left"))))
    assert "kept" not in get(workplace, job_id).failure["hint"]
    assert not (settings.kept_dir / f"{job_id}-1").exists()


class FlakyStore(LocalStore):
    """A store that is away until it is told otherwise."""

    def __init__(self, folder):
        super().__init__(folder)
        self.away = threading.Event()

    def put(self, key, source):
        if self.away.is_set():
            raise StorageUnavailable(f"{key}: connection refused")
        super().put(key, source)


def test_a_finished_run_waits_for_the_object_store(workplace, post, settings, monkeypatch):
    store = FlakyStore(settings.objects_dir)
    store.away.set()
    monkeypatch.setattr("worker.files.transfer.PUBLISH_SECONDS", 60)
    job_id = post()
    with running(replace(workplace, store=store), says="warned", count=1):
        job = get(workplace, job_id)
        assert (job.status, job.phase) == ("running", "publishing")
        store.away.clear()
    assert get(workplace, job_id).status == "succeeded"
    assert warnings(workplace, job_id) == ["storage_unavailable"]


def test_a_run_that_waits_for_the_object_store_can_still_be_cancelled(workplace, post, settings, monkeypatch):
    store = FlakyStore(settings.objects_dir)
    store.away.set()
    monkeypatch.setattr("worker.files.transfer.PUBLISH_SECONDS", 60)
    job_id = post()
    with running(replace(workplace, store=store), says="warned", count=1):
        ask(workplace, job_id, "cancel")
    assert get(workplace, job_id).status == "cancelled"


def test_a_state_that_could_not_be_stored_in_time_is_stored_at_the_end(workplace, post, settings, monkeypatch):
    store = FlakyStore(settings.objects_dir)
    store.away.set()
    monkeypatch.setattr("worker.files.transfer.PUBLISH_SECONDS", 60)
    job_id = post(states="yes", act="hang")
    with running(replace(workplace, store=store)):
        ask(workplace, job_id, "pause")
        store.away.clear()
    assert get(workplace, job_id).status == "paused"
    assert "state-10.safetensors" in states_of(workplace, job_id)
    invariants.check(workplace.database, workplace.store)


def test_an_attempt_that_was_lost_after_it_had_delivered_everything_is_not_run_again(workplace, post, monkeypatch):
    job_id = post()
    with monkeypatch.context() as patched:
        patched.setattr(claims, "succeed", crash)
        with pytest.raises(ZeroDivisionError):
            run_next(workplace)
    with workplace.database.writing() as session:
        session.execute(update(Job).values(lease_until=Job.created_at))
    held = claim(workplace)
    assert held.attempt == 2
    run(held, replace(workplace, command=never))
    job = get(workplace, job_id)
    assert (job.status, job.results["after"]["union"]["value"]) == ("succeeded", 0.75)
    with workplace.database.reading() as session:
        assert session.scalars(select(Checkpoint.attempt)).all() == [1]
    invariants.check(workplace.database, workplace.store)


def test_an_attempt_that_was_lost_before_its_upload_counted_leaves_only_garbage(workplace, post, monkeypatch):
    job_id = post(states="yes")
    with monkeypatch.context() as patched:
        patched.setattr(ingest, "save", crash)
        with pytest.raises(ZeroDivisionError):
            run_next(workplace)
    with workplace.database.writing() as session:
        session.execute(update(Job).values(lease_until=Job.created_at))
    run_next(workplace)
    assert get(workplace, job_id).status == "succeeded"
    with workplace.database.reading() as session:
        checkpoint = session.scalars(select(Checkpoint)).one()
    assert checkpoint.attempt == 2
    invariants.check(workplace.database, workplace.store)
    assert hashlib.sha256(b"".join(workplace.store.read(checkpoint.key))).hexdigest() == checkpoint.sha256


def crash(*_, **__):
    raise ZeroDivisionError


def never(*_):
    raise AssertionError("there is nothing left to run")


def test_a_file_that_arrives_damaged_fails_the_job(workplace, post, settings):
    class ForgetfulStore(LocalStore):
        def read(self, key, *, start=0, stop=None):
            yield b"something else"

    job_id = post()
    run_next(replace(workplace, store=ForgetfulStore(settings.objects_dir)))
    assert get(workplace, job_id).failure["code"] == "storage_unavailable"


def test_a_worker_without_room_fails_the_job_with_a_remedy(workplace, post, monkeypatch):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job_id = post()
    monkeypatch.setattr(Path, "write_text", no_room)
    run_next(workplace)
    failure = get(workplace, job_id).failure
    assert (failure["code"], failure["hint"][:12]) == ("disk_full", "Make room on")


def test_the_work_folder_of_an_earlier_attempt_is_removed(workplace, post):
    job_id = post()
    (workplace.settings.work_dir / job_id / "1").mkdir(parents=True)
    run_next(workplace)
    assert list(workplace.settings.work_dir.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_data_set_is_downloaded_before_its_run(workplace, post, tmp_path, monkeypatch, there):
    """By a process of its own: the run reaches no server. Here a proxy that is away stands for the internet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    if there:
        (tmp_path / ".cache" / "temper" / "cifar10").mkdir(parents=True)
    job_id = post(base_model="cifar10-small-linf")
    run_next(workplace)
    job = get(workplace, job_id)
    if there:
        assert job.status == "succeeded"
    else:
        assert (job.status, job.failure["code"], job.failure["field"]) == ("failed", "bad_dataset", "dataset")
        assert "cannot download CIFAR-10 into" in job.failure["message"]
