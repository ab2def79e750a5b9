"""Logs of attempts: in the object store while the run goes on, whole at its end, and without a secret in them."""

import threading
import time

import pytest
from sqlalchemy import select

from app.assets.registry import Registry
from app.jobs import claims, lifecycle
from app.jobs.leases import log_key
from app.schemas.job_request import parse_request
from app.storage import LocalStore
from app.tables import Attempt
from tests.support.fake_worker import fake_command
from tests.support.processes import wait_until
from worker.attempt import run
from worker.workplace import Workplace


@pytest.fixture
def workplace(settings, database, monkeypatch):
    """A worker's workplace that stores logs ten times a second."""
    monkeypatch.setattr("worker.files.log_uploader.STORE_SECONDS", 0.1)
    registry = Registry(settings.models_dir, settings.datasets_dir)
    return Workplace(settings, database, LocalStore(settings.objects_dir), registry, fake_command)


def start(workplace, project, **wish):
    """Queue and claim a job."""
    with workplace.database.writing() as session:
        lifecycle.create(session, project.id, parse_request({"base_model": "digits-cnn-linf", "metadata": wish}))
        return claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))


def logged(workplace, held):
    with workplace.database.reading() as session:
        attempt = session.scalars(select(Attempt)).one()
    parts = [log_key(held.job_id, held.attempt, part) for part in range(1, attempt.log_parts + 1)]
    content = b"".join(chunk for part in parts for chunk in workplace.store.read(part))
    assert len(content) == attempt.log_size
    return content.decode()


def test_a_log_tells_of_a_crash_and_stays_when_the_worker_is_gone(workplace, project):
    held = start(workplace, project, act="crash")
    run(held, workplace)
    lines = logged(workplace, held).splitlines()
    assert lines[0].endswith("attempt 1 begins")
    assert "RuntimeError: the GPU fell off" in lines
    assert lines[-1].endswith("the training process has ended with exit code 1")
    assert list(workplace.settings.work_dir.iterdir()) == []


def test_a_log_can_be_read_while_the_run_goes_on(workplace, project):
    held = start(workplace, project, act="hang", say="half a line is not stored yet|but this")
    thread = threading.Thread(target=run, args=(held, workplace))
    thread.start()
    wait_until(lambda: "half a line" in logged(workplace, held))
    time.sleep(0.3)
    assert "but this" not in logged(workplace, held)
    with workplace.database.writing() as session:
        lifecycle.ask(session, held.job_id, "cancel")
    thread.join(20)
    assert "but this" in logged(workplace, held)


def test_no_secret_gets_into_a_log(workplace, project, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3-secret-of-ours")
    said = (
        "s3-secret-of-ours postgresql://temper:hunter2@db/x "
        "tmp_abcdefgh_0123456789012345678901 /x?X-Amz-Signature=0af1&b"
        "|secret=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, Authorization: Bearer abcdef, /x?Expires=1&Signature=0af1"
    )
    held = start(workplace, project, say=said)
    run(held, workplace)
    log = logged(workplace, held)
    assert "[redacted] postgresql://temper:[redacted]@db/x tmp_abcdefgh_[redacted] /x?[redacted]" in log
    assert "secret=whsec_[redacted], Authorization: Bearer [redacted], /x?[redacted]" in log


def test_an_endless_log_is_cut(workplace, project, monkeypatch):
    monkeypatch.setattr("worker.files.log_uploader.MAX_LOG_BYTES", 4096)
    held = start(workplace, project, say="the same line|" * 30, times="20")
    run(held, workplace)
    assert 3000 < len(logged(workplace, held)) <= 4096


def test_the_training_process_has_no_secret_in_its_environment(workplace, project, monkeypatch):
    for name in ("TEMPER_X", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "HF_TOKEN", "MY_SECRET"):
        monkeypatch.setenv(name, "hidden-from-it")
    held = start(workplace, project, act="show environment")
    run(held, workplace)
    assert "PATH=" in logged(workplace, held)
    assert "hidden-from-it" not in logged(workplace, held)
