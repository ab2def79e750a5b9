"""The life of a job in the database, without HTTP: every move, every owner, every race."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DatabaseError

from app import jobs
from app.jobs import HELD, MOVES, TERMINAL, Claim, KeyReused, LostOwnership, NotAllowed
from app.schemas import Failure
from app.tables import Attempt, Checkpoint, Event, Job, Metric
from core import events as reported
from core.spec import parse

SPEC = parse({"base_model": "digits-cnn-linf"})
FAILURE = Failure(code="bad_weights", message="m", hint="h", field=None, retryable=False)
REPORTS = reported.Reports(before=None, after=None)
SAVED = reported.Saved(kind="checkpoint", path="/x/checkpoint.safetensors", sha256="ab", size=3, step=5, epoch=0.5)
STATUSES = list(MOVES)


def create(database, project, spec=SPEC, **options):
    with database.writing() as session:
        return jobs.create(session, project.id, spec, **options).job.id


def claim(database, *, lease_seconds=30, max_losses=5, worker="w"):
    with database.writing() as session:
        return jobs.claim(session, worker=worker, lease_seconds=lease_seconds, max_losses=max_losses)


def do(database, action, *args, **options):
    with database.writing() as session:
        return action(session, *args, **options)


def get(database, job_id):
    with database.reading() as session:
        return session.get_one(Job, job_id)


def history(database, job_id):
    with database.reading() as session:
        return session.execute(select(Event.seq, Event.type).where(Event.job_id == job_id).order_by(Event.seq)).all()


def put_in(database, job_id, status):
    """Put a job into a status by hand, as no code may."""
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=status))


def step(number):
    counts = {"linf": reported.NormCount(seen=4, robust=1)}
    return reported.Stepped(
        step=number,
        total_steps=4,
        epoch=number / 4,
        loss=0.5,
        learning_rate=0.1,
        norm="linf",
        counts=counts,
        seconds=2.0 * number,
    )


@pytest.fixture
def job_id(database, project):
    return create(database, project)


@pytest.fixture
def claimed(database, job_id):
    return claim(database)


def test_allowed_moves_are_those_of_the_design():
    assert {(source, target) for source, targets in MOVES.items() for target in targets} == {
        ("queued", "running"),
        ("queued", "cancelling"),
        ("running", "queued"),
        ("running", "pausing"),
        ("running", "stopping"),
        ("running", "cancelling"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("pausing", "paused"),
        ("pausing", "failed"),
        ("paused", "queued"),
        ("paused", "cancelling"),
        ("stopping", "succeeded"),
        ("stopping", "failed"),
        ("cancelling", "cancelled"),
    }
    assert {"succeeded", "failed", "cancelled"} == TERMINAL


@pytest.mark.parametrize("source", STATUSES)
def test_a_job_makes_exactly_the_moves_of_the_table(database, project, source):
    for target in STATUSES:
        job_id = create(database, project)
        put_in(database, job_id, source)
        moved = do(database, jobs._move, target, Job.id == job_id)
        assert bool(moved) == (target in MOVES[source])
        assert get(database, job_id).status == (target if moved else source)


@pytest.mark.parametrize("status", STATUSES)
def test_actions_follow_from_the_moves(status):
    assert jobs.allowed_actions(status) == (["cancel"] if status in ("queued", "running", "paused") else [])


@pytest.mark.parametrize("ended", sorted(TERMINAL))
def test_the_database_itself_refuses_to_change_an_ended_job(database, job_id, ended):
    put_in(database, job_id, ended)
    for other in set(STATUSES) - {ended}:
        with pytest.raises(DatabaseError, match="a job that has ended keeps its status"), database.writing() as session:
            session.execute(text("UPDATE jobs SET status = :other"), {"other": other})
    assert get(database, job_id).status == ended


def test_a_created_job_waits_with_its_resolved_spec(database, project, job_id):
    job = get(database, job_id)
    assert (job.status, job.epoch, job.project_id) == ("queued", 0, project.id)
    assert parse(job.spec) == SPEC
    assert history(database, job_id) == [(1, "job.created")]


def test_the_same_key_and_spec_make_one_job_from_many_threads(database, project):
    barrier = threading.Barrier(12)

    def post(_):
        barrier.wait()
        with database.writing() as session:
            created = jobs.create(session, project.id, SPEC, idempotency_key="k")
            return created.job.id, created.replayed

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(post, range(12)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 11


def test_the_same_key_with_another_spec_is_refused(database, project):
    create(database, project, idempotency_key="k")
    with pytest.raises(KeyReused):
        create(database, project, parse({"base_model": "digits-cnn-linf", "seed": 1}), idempotency_key="k")


def test_a_claim_takes_the_highest_priority_and_then_the_oldest(database, project):
    first = create(database, project)
    create(database, project)
    urgent = create(database, project, parse({"base_model": "digits-cnn-linf", "priority": 5}))
    assert [claim(database).job_id for _ in range(2)] == [urgent, first]


def test_many_threads_claim_each_job_once(database, project):
    posted = {create(database, project) for _ in range(60)}
    barrier = threading.Barrier(8)

    def take_all(worker):
        barrier.wait()
        return list(iter(lambda: claim(database, worker=worker), None))

    with ThreadPoolExecutor(8) as pool:
        claims = [each for taken in pool.map(take_all, "abcdefgh") for each in taken]
    assert len(claims) == 60
    assert {each.job_id for each in claims} == posted
    assert {each.epoch for each in claims} == {1}


def test_nothing_to_claim_is_none(database):
    assert claim(database) is None


def test_a_heartbeat_keeps_the_lease(database, claimed):
    do(database, jobs.heartbeat, claimed, lease_seconds=-1)
    assert do(database, jobs.heartbeat, claimed, lease_seconds=30) == "running"
    assert claim(database) is None


def test_an_expired_job_is_taken_over_and_the_loss_counted(database, project):
    job_id = create(database, project)
    claim(database, lease_seconds=-1)
    second = claim(database, worker="other")
    job = get(database, job_id)
    assert (second.job_id, second.epoch) == (job_id, 2)
    assert (job.status, job.infra_losses, job.owner) == ("running", 1, "other")
    assert [kind for _, kind in history(database, job_id)][-2:] == ["job.recovered", "job.claimed"]
    with database.reading() as session:
        assert session.scalars(select(Attempt.outcome).order_by(Attempt.epoch)).all() == ["lost", None]


def test_a_job_that_loses_its_worker_too_often_fails(database, project):
    job_id = create(database, project)
    attempts = list(iter(lambda: claim(database, lease_seconds=-1, max_losses=3), None))
    job = get(database, job_id)
    assert len(attempts) == 3
    assert (job.status, job.failure["code"], job.infra_losses) == ("failed", "worker_lost", 3)
    assert job.finished_at


def test_a_trainer_killed_too_often_is_a_repeated_crash(database, project):
    job_id = create(database, project)
    for _ in range(3):
        do(database, jobs.lose, claim(database), max_losses=3)
    job = get(database, job_id)
    assert (job.status, job.failure["code"], job.epoch) == ("failed", "repeated_crash", 3)


WRITES = {
    "heartbeat": lambda session, claim: jobs.heartbeat(session, claim, lease_seconds=30),
    "look": jobs.look,
    "record": lambda session, claim: jobs.record(session, claim, [step(1), reported.Entered(phase="training")]),
    "save": lambda session, claim: jobs.save(session, claim, SAVED, key="jobs/x"),
    "succeed": lambda session, claim: jobs.succeed(session, claim, REPORTS),
    "fail": lambda session, claim: jobs.fail(session, claim, FAILURE),
    "hand_back": jobs.hand_back,
    "lose": lambda session, claim: jobs.lose(session, claim, max_losses=5),
}


def rows(database):
    with database.reading() as session:
        tables = (Job, Attempt, Event, Metric, Checkpoint)
        return [tuple(row) for table in tables for row in session.execute(select(table.__table__))]


@pytest.mark.parametrize("write", WRITES)
def test_a_stale_owner_changes_nothing(database, project, write):
    create(database, project)
    stale = claim(database, lease_seconds=-1)
    assert claim(database)
    before = rows(database)
    with pytest.raises(LostOwnership):
        do(database, WRITES[write], stale)
    assert rows(database) == before


@pytest.mark.parametrize("ended", sorted(TERMINAL))
def test_an_ended_job_takes_no_write_of_its_last_owner(database, claimed, ended):
    put_in(database, claimed.job_id, ended)
    before = rows(database)
    for write in WRITES.values():
        with pytest.raises(LostOwnership):
            do(database, write, claimed)
    assert rows(database) == before


def test_what_a_run_reports_becomes_history_curve_and_progress(database, claimed):
    do(database, jobs.record, claimed, [reported.Entered(phase="training"), step(1), step(2)])
    job = get(database, claimed.job_id)
    assert job.phase == "training"
    assert (job.progress["step"], job.progress["fraction"], job.progress["seconds_remaining"]) == (2, 0.5, 4.0)
    assert [kind for _, kind in history(database, job.id)] == ["job.created", "job.claimed", "entered"]
    with database.reading() as session:
        assert session.scalars(select(Metric.step)).all() == [1, 2]


def test_progress_follows_the_attacks_of_an_evaluation(database, claimed):
    attacked = reported.Attacked(subject="base", norm="l1", attack="apgd-ce", robust=3, examples=4, done=1, total=4)
    do(database, jobs.record, claimed, [step(4), reported.Entered(phase="evaluating", subject="base"), attacked])
    progress = get(database, claimed.job_id).progress
    assert (progress["subject"], progress["attacks_done"], progress["fraction"]) == ("base", 1, 0.25)
    assert (progress["step"], progress["seconds_remaining"]) == (4, None)


def test_history_is_numbered_without_gaps_by_many_writers(database, claimed):
    def write(_):
        do(database, jobs.record, claimed, [reported.Warned(code="c", message="m")] * 3)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(20)))
    assert [seq for seq, _ in history(database, claimed.job_id)] == list(range(1, 63))


def test_a_saved_checkpoint_is_the_latest(database, claimed):
    do(database, jobs.save, claimed, SAVED, key=f"{claimed.prefix}/checkpoint.safetensors")
    job = get(database, claimed.job_id)
    with database.reading() as session:
        checkpoint = session.scalars(select(Checkpoint)).one()
    assert (job.checkpoint_id, checkpoint.job_id, checkpoint.epoch) == (checkpoint.id, job.id, 1)


def test_a_failed_job_says_why(database, claimed):
    do(database, jobs.fail, claimed, FAILURE)
    job = get(database, claimed.job_id)
    assert (job.status, job.failure, job.phase) == ("failed", FAILURE.model_dump(), None)


def test_a_job_handed_back_is_no_loss(database, claimed):
    do(database, jobs.hand_back, claimed)
    job = get(database, claimed.job_id)
    assert (job.status, job.infra_losses, job.lease_until) == ("queued", 0, None)
    assert claim(database).epoch == 2


def test_a_waiting_job_is_cancelled_at_once(database, job_id):
    job = do(database, jobs.request_cancel, job_id)
    assert (job.status, get(database, job_id).status) == ("cancelled", "cancelled")
    assert [kind for _, kind in history(database, job_id)] == ["job.created", "job.cancelling", "job.cancelled"]
    assert claim(database) is None


def test_a_running_job_is_asked_to_give_up(database, claimed):
    assert do(database, jobs.request_cancel, claimed.job_id).status == "cancelling"
    assert do(database, jobs.heartbeat, claimed, lease_seconds=30) == "cancelling"
    assert do(database, jobs.look, claimed) == "cancelling"


def test_cancelling_twice_changes_nothing_more(database, claimed):
    do(database, jobs.request_cancel, claimed.job_id)
    version = get(database, claimed.job_id).version
    assert do(database, jobs.request_cancel, claimed.job_id).version == version


@pytest.mark.parametrize("end", ["succeed", "fail", "hand_back", "lose"])
def test_a_job_that_is_being_cancelled_ends_cancelled_whatever_its_run_says(database, claimed, end):
    do(database, jobs.request_cancel, claimed.job_id)
    do(database, WRITES[end], claimed)
    assert get(database, claimed.job_id).status == "cancelled"


def test_a_job_whose_worker_vanished_while_cancelling_is_cancelled(database, project):
    job_id = create(database, project)
    lost = claim(database, lease_seconds=-1)
    put_in(database, lost.job_id, "cancelling")
    assert claim(database) is None
    assert get(database, job_id).status == "cancelled"


@pytest.mark.parametrize("ended", ["succeeded", "failed"])
def test_an_ended_job_cannot_be_cancelled(database, job_id, ended):
    put_in(database, job_id, ended)
    with pytest.raises(NotAllowed) as refusal, database.writing() as session:
        jobs.request_cancel(session, job_id)
    assert refusal.value.status == ended


def test_cancel_raced_with_success_gives_one_end(database, project):
    for _ in range(15):
        job_id = create(database, project)
        held = claim(database)
        barrier = threading.Barrier(2)

        def cancel(job_id=job_id, barrier=barrier):
            barrier.wait()
            try:
                do(database, jobs.request_cancel, job_id)
            except NotAllowed:
                return False
            return True

        def succeed(held=held, barrier=barrier):
            barrier.wait()
            do(database, jobs.succeed, held, REPORTS)

        with ThreadPoolExecutor(2) as pool:
            cancelled, _ = pool.submit(cancel), pool.submit(succeed).result()
        assert get(database, job_id).status == ("cancelled" if cancelled.result() else "succeeded")


def test_every_visible_change_makes_a_new_version_and_a_heartbeat_does_not(database, claimed):
    before = get(database, claimed.job_id).version
    do(database, jobs.heartbeat, claimed, lease_seconds=30)
    assert get(database, claimed.job_id).version == before
    do(database, jobs.record, claimed, [step(1)])
    assert get(database, claimed.job_id).version == before + 1


def test_held_jobs_have_a_lease_and_others_have_none(database, claimed):
    assert get(database, claimed.job_id).lease_until
    assert "running" in HELD
    do(database, jobs.succeed, claimed, REPORTS)
    assert get(database, claimed.job_id).lease_until is None


def test_a_claim_names_a_place_of_its_own(claimed):
    assert Claim("job_1", 2, SPEC).prefix == "jobs/job_1/attempts/2"
