"""Chores: done again and again, whatever befalls one round."""

import time
from threading import Event

import redis
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app import tasks
from app.jobs import claims, lifecycle
from app.operations.maintenance import Maintenance, MaintenanceContext, PeriodicTask, ring_again, take_back_expired_jobs
from app.platform.broker import KEY_PREFIX
from app.platform.database import seconds_from_now
from app.platform.ids import new_id
from app.platform.queue import open_doorbell
from app.schemas.job_request import parse_request
from app.storage import LocalStore
from app.tables import Attempt, Job, Task
from tests.support.processes import wait_until

SPEC = parse_request({"base_model": "digits-cnn-linf"})


def context(settings, database):
    return MaintenanceContext(settings, database, LocalStore(settings.objects_dir), open_doorbell(settings))


def test_a_chore_goes_on_after_a_round_that_failed(settings, database):
    rounds, done = [], Event()

    def fail_twice(_):
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise OperationalError("", {}, Exception("away"))
        if len(rounds) == 2:
            raise ZeroDivisionError
        done.set()

    maintenance = Maintenance(context(settings, database), [PeriodicTask("fail", 0.01, fail_twice)])
    maintenance.start()
    assert done.wait(5)
    maintenance.stop()
    ended = len(rounds)
    time.sleep(0.05)
    assert len(rounds) == ended


def test_a_job_whose_worker_is_lost_is_queued_again_without_any_worker(settings, database, project):
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
        held = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
    take_back_expired_jobs(context(settings, database))
    with database.writing() as session:
        assert session.get_one(Job, held.job_id).status == "running"
        session.execute(update(Job).values(lease_until=Job.created_at))
    take_back_expired_jobs(context(settings, database))
    with database.reading() as session:
        assert session.get_one(Job, held.job_id).status == "queued"
        assert session.scalars(select(Attempt.outcome)).all() == ["lost"]


def test_files_that_have_waited_for_a_while_are_rung_for_again(settings, database, project, valkey_server):
    ringing = settings.model_copy(update={"broker_url": valkey_server.url})
    here = context(ringing, database)
    with redis.Redis.from_url(valkey_server.url) as broker:
        broker.flushall()
        here.doorbell.start()
        with database.writing() as session:
            tasks.add(session, "inspect_dataset", project_id=project.id, subject_id=new_id("ds"))
        ring_again(here)
        with database.writing() as session:
            session.execute(update(Task).values(created_at=seconds_from_now(-60)))
        assert not broker.exists(f"{KEY_PREFIX}cpu")
        ring_again(here)
        wait_until(lambda: broker.llen(f"{KEY_PREFIX}cpu") == 1)
        here.doorbell.stop()
