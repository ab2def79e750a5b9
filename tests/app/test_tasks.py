"""Tasks: claimed once, fenced by their attempt, taken back when their process is lost; subjects follow them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from app import tasks
from app.operations import deletion
from app.platform.leases import LeaseLost
from app.tables import Task

FAILURE = {"code": "crashed", "message": "It crashed too often."}


@pytest.fixture
def followed():
    """What the subject was told, in order."""
    return []


@pytest.fixture
def kind(followed):
    def follow(session, task):
        followed.append((task.subject_id, task.status))

    return tasks.Kind("inspect_dataset", follow, FAILURE)


def add(database, project, subject="ds_1", kind="inspect_dataset"):
    with database.writing() as session:
        arguments = {"size": 3}
        return tasks.add(session, kind, project_id=project.id, subject_id=subject, arguments=arguments).id


def claim(database, kind, **options):
    with database.writing() as session:
        return tasks.claim(session, [kind], **{"owner": "w", "lease_seconds": 60, "max_crashes": 3} | options)


def do(database, action, *arguments, **options):
    with database.writing() as session:
        return action(session, *arguments, **options)


def get(database, task_id):
    with database.reading() as session:
        return session.get_one(Task, task_id)


def test_the_oldest_task_of_a_kind_is_claimed_with_all_that_it_needs(database, project, kind, followed):
    first, _ = add(database, project), add(database, project, "ds_2")
    add(database, project, "upl_1", "verify_upload")
    held = claim(database, kind)
    assert (held.task_id, held.attempt, held.subject_id, held.arguments) == (first, 1, "ds_1", {"size": 3})
    assert (held.project_id, get(database, first).owner) == (project.id, "w")
    assert claim(database, kind).subject_id == "ds_2"
    assert claim(database, kind) is None
    assert followed == [("ds_1", "running"), ("ds_2", "running")]


def test_a_task_may_be_claimed_by_its_subject(database, project, kind):
    add(database, project)
    add(database, project, "ds_2")
    assert claim(database, kind, subject_id="ds_2").subject_id == "ds_2"
    assert claim(database, kind, subject_id="ds_2") is None


def test_of_many_processes_one_claims_a_task(database, project, kind):
    add(database, project)
    with ThreadPoolExecutor(6) as pool:
        held = list(pool.map(lambda _: claim(database, kind), range(6)))
    assert len([each for each in held if each]) == 1


ENDS = {
    "succeed": (lambda session, held: tasks.succeed(session, held, {"a": 1}), "succeeded"),
    "fail": (lambda session, held: tasks.fail(session, held, FAILURE), "failed"),
    "hand_back": (tasks.hand_back, "queued"),
    "crash": (lambda session, held: tasks.record_crash(session, held, max_crashes=3), "queued"),
    "cancel": (lambda session, held: tasks.cancel(session, [held.subject_id]), "cancelled"),
}


@pytest.mark.parametrize("end", ENDS)
def test_after_its_end_a_claim_writes_nothing(database, project, kind, followed, end):
    task = add(database, project)
    held = claim(database, kind)
    action, status = ENDS[end]
    do(database, action, held)
    row = get(database, task)
    assert (row.status, row.lease_until) == (status, None)
    assert (row.finished_at is None) == (status == "queued")
    assert row.crashes == (end == "crash")
    assert (row.result, row.failure) == ({"a": 1} if end == "succeed" else None, FAILURE if end == "fail" else None)
    told = list(followed)
    assert told[-1] == ("ds_1", "running" if end == "cancel" else status)
    for write in (
        *(action for action, _ in ENDS.values() if action is not ENDS["cancel"][0]),
        lambda session, held: tasks.renew(session, held, lease_seconds=9),
    ):
        with pytest.raises(LeaseLost):
            do(database, write, held)
    assert (get(database, task).status, followed) == (status, told)


def test_a_stale_claim_is_fenced_by_the_next_one(database, project, kind):
    add(database, project)
    stale = claim(database, kind, lease_seconds=-1)
    assert claim(database, kind).attempt == 2
    with pytest.raises(LeaseLost):
        do(database, tasks.succeed, stale)


def test_a_renewed_lease_does_not_expire(database, project, kind):
    task = add(database, project)
    held = claim(database, kind, lease_seconds=-1)
    do(database, tasks.renew, held, lease_seconds=60)
    do(database, tasks.expire, [kind], max_crashes=3)
    assert get(database, task).status == "running"


def test_a_task_that_crashes_too_often_fails_with_the_failure_of_its_kind(database, project, kind, followed):
    task = add(database, project)
    for _ in range(3):
        claim(database, kind, lease_seconds=-1)
    assert claim(database, kind) is None
    row = get(database, task)
    assert (row.status, row.crashes, row.failure) == ("failed", 3, FAILURE)
    assert followed[-1] == ("ds_1", "failed")


def test_a_kind_without_a_crash_failure_is_tried_without_a_limit(database, project):
    kind = tasks.Kind("verify_upload", lambda session, task: None)
    add(database, project, "upl_1", "verify_upload")
    for _ in range(5):
        assert claim(database, kind, lease_seconds=-1)


def test_what_a_subject_cannot_follow_is_rolled_back_with_its_task(database, project):
    def fail(session, task):
        raise ZeroDivisionError

    task = add(database, project)
    with pytest.raises(ZeroDivisionError):
        claim(database, tasks.Kind("inspect_dataset", fail))
    assert (get(database, task).status, get(database, task).attempt) == ("queued", 0)


def test_ended_tasks_are_forgotten_after_some_days(database, project, kind, monkeypatch):
    ended, waiting = add(database, project), add(database, project, "ds_2")
    do(database, tasks.succeed, claim(database, kind))
    deletion.forget_tasks(deletion.Round(database, threading.Event()))
    assert get(database, ended)
    monkeypatch.setattr(deletion, "TASK_DAYS", -1)
    deletion.forget_tasks(deletion.Round(database, threading.Event()))
    with database.reading() as session:
        assert session.scalars(select(Task.id)).all() == [waiting]
