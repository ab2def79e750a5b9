"""The life of a job in the database, without HTTP: every move, every owner, every race."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DatabaseError

from app.jobs import claims, ingest, lifecycle, moves
from app.jobs.claims import RetryPolicy
from app.jobs.leases import Claim, LeaseLost
from app.jobs.lifecycle import ACTIONS, KeyReused, NotAllowed
from app.jobs.moves import MOVES, TERMINAL
from app.schemas import Failure
from app.schemas.job_request import parse_request
from app.tables import CLAIMED, Attempt, Checkpoint, Event, Job, Metric
from core.schema import events as reported
from core.schema.report import Reports

SPEC = parse_request({"base_model": "digits-cnn-linf"})
FAILURE = Failure(code="bad_weights", message="m", hint="h", field=None, retryable=False)
REPORTS = Reports(before=None, after=None)
SAVED = reported.Saved(kind="checkpoint", path="/x/checkpoint.safetensors", sha256="ab", size=3, step=5, epoch=0.5)
STATUSES = list(MOVES)


def create(database, project, spec=SPEC, **options):
    with database.writing() as session:
        return lifecycle.create(session, project.id, spec, **options).job.id


def claim(database, *, lease_seconds=30, worker="w", **retry_policy):
    with database.writing() as session:
        retry_policy = RetryPolicy(**{"max_crashes": 5, "backoff_seconds": 0, **retry_policy})
        return claims.claim(session, worker=worker, lease_seconds=lease_seconds, retry_policy=retry_policy)


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


def test_the_pictures_of_the_moves_show_the_table():
    page = Path(__file__).parents[3] / "docs" / "explanations" / "architecture.md"
    of_page = page.read_text().split("## States of a job\n\n```\n")[1].split("```")[0]
    of_module = moves.__doc__.split("\n\n")[1]
    for picture in (of_page, of_module):
        shown = set()
        for line in picture.splitlines():
            groups = [group.split(" | ") for group in line.split("(")[0].strip().split(" -> ")]
            shown |= {(source, target) for left, right in pairwise(groups) for source in left for target in right}
        assert shown == {(source, target) for source, targets in MOVES.items() for target in targets}


def test_allowed_moves_are_those_of_the_design():
    assert {(source, target) for source, targets in MOVES.items() for target in targets} == {
        ("queued", "running"),
        ("queued", "paused"),
        ("queued", "cancelling"),
        ("running", "queued"),
        ("running", "pausing"),
        ("running", "stopping"),
        ("running", "cancelling"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("pausing", "paused"),
        ("pausing", "cancelling"),
        ("pausing", "succeeded"),
        ("pausing", "failed"),
        ("paused", "queued"),
        ("paused", "cancelling"),
        ("stopping", "queued"),
        ("stopping", "cancelling"),
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
        moved = do(database, moves.move, target, Job.id == job_id)
        assert bool(moved) == (target in MOVES[source])
        assert get(database, job_id).status == (target if moved else source)


ALLOWED = {
    "queued": ["cancel"],
    "running": ["pause", "stop", "cancel"],
    "pausing": ["cancel"],
    "paused": ["resume", "cancel"],
    "stopping": ["cancel"],
    "cancelling": [],
    "succeeded": [],
    "failed": ["retry"],
    "cancelled": ["retry"],
}


@pytest.mark.parametrize("status", STATUSES)
def test_what_may_be_asked_is_allowed_and_all_else_is_refused_or_has_been_granted(database, job_id, status):
    put_in(database, job_id, status)
    assert lifecycle.allowed_actions(get(database, job_id)) == ALLOWED[status]
    for action in ("pause", "resume", "stop", "cancel"):
        if action in ALLOWED[status]:
            continue
        before = rows(database)
        if status in ACTIONS[action].granted:
            assert do(database, lifecycle.ask, job_id, action).status == status
        else:
            with pytest.raises(NotAllowed) as refusal:
                do(database, lifecycle.ask, job_id, action)
            assert (refusal.value.status, refusal.value.allowed_actions) == (status, ALLOWED[status])
        assert rows(database) == before


def test_an_evaluation_cannot_be_stopped_early_for_it_has_nothing_to_deliver(database, project):
    create(database, project, parse_request({"kind": "evaluate", "base_model": "digits-cnn-linf"}))
    held = claim(database)
    assert lifecycle.allowed_actions(get(database, held.job_id)) == ["pause", "cancel"]
    with pytest.raises(NotAllowed):
        do(database, lifecycle.ask, held.job_id, "stop")


@pytest.mark.parametrize("ended", sorted(TERMINAL))
def test_the_database_itself_refuses_to_change_an_ended_job(database, job_id, ended):
    put_in(database, job_id, ended)
    for other in set(STATUSES) - {ended}:
        with pytest.raises(DatabaseError, match="a job that has ended keeps its status"), database.writing() as session:
            session.execute(text("UPDATE jobs SET status = :other"), {"other": other})
    assert get(database, job_id).status == ended


def test_a_created_job_waits_with_its_resolved_spec(database, project, job_id):
    job = get(database, job_id)
    assert (job.status, job.attempt, job.project_id) == ("queued", 0, project.id)
    assert parse_request(job.spec) == SPEC
    assert history(database, job_id) == [(1, "job.created")]


def test_the_same_key_and_spec_make_one_job_from_many_threads(database, project):
    barrier = threading.Barrier(12)

    def post(_):
        barrier.wait()
        with database.writing() as session:
            created = lifecycle.create(session, project.id, SPEC, idempotency_key="k")
            return created.job.id, created.replayed

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(post, range(12)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 11


def test_the_same_key_with_another_spec_is_refused(database, project):
    create(database, project, idempotency_key="k")
    with pytest.raises(KeyReused):
        create(database, project, parse_request({"base_model": "digits-cnn-linf", "seed": 1}), idempotency_key="k")


def test_a_claim_takes_the_highest_priority_and_then_the_oldest(database, project):
    first = create(database, project)
    create(database, project)
    urgent = create(database, project, parse_request({"base_model": "digits-cnn-linf", "priority": 5}))
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
    assert {each.attempt for each in claims} == {1}


def test_nothing_to_claim_is_none(database):
    assert claim(database) is None


def test_a_heartbeat_keeps_the_lease(database, claimed):
    do(database, claims.heartbeat, claimed, lease_seconds=-1)
    assert do(database, claims.heartbeat, claimed, lease_seconds=30) == "running"
    assert claim(database) is None


def test_an_expired_job_is_taken_over_and_the_loss_counted(database, project):
    job_id = create(database, project)
    claim(database, lease_seconds=-1)
    second = claim(database, worker="other")
    job = get(database, job_id)
    assert (second.job_id, second.attempt) == (job_id, 2)
    assert (job.status, job.crashes, job.owner) == ("running", 1, "other")
    assert [kind for _, kind in history(database, job_id)][-2:] == ["job.recovered", "job.claimed"]
    with database.reading() as session:
        assert session.scalars(select(Attempt.outcome).order_by(Attempt.attempt)).all() == ["lost", None]


def attempts_until_it_fails(database, **retry_policy):
    return len(list(iter(lambda: claim(database, lease_seconds=-1, **retry_policy), None)))


def test_a_job_that_loses_its_worker_too_often_fails(database, project):
    job_id = create(database, project)
    assert attempts_until_it_fails(database, max_crashes=3, max_crashes_in_place=9) == 3
    job = get(database, job_id)
    assert (job.status, job.failure["code"], job.crashes) == ("failed", "worker_lost", 3)
    assert job.finished_at


def test_a_job_that_takes_its_workers_down_without_getting_further_is_poison(database, project):
    job_id = create(database, project)
    other = create(database, project, parse_request({"base_model": "digits-cnn-linf", "priority": -1}))
    assert attempts_until_it_fails(database, max_crashes=9, max_crashes_in_place=3) == 3 + 3
    job = get(database, job_id)
    assert (job.status, job.failure["code"], job.attempt) == ("failed", "repeated_crash", 3)
    assert "3 times without getting any further" in job.failure["message"]
    assert get(database, other).attempt == 3


def test_a_trainer_killed_too_often_is_a_repeated_crash(database, project):
    job_id = create(database, project)
    retry_policy = RetryPolicy(max_crashes=3, max_crashes_in_place=9, backoff_seconds=0)
    for _ in range(3):
        do(
            database,
            claims.record_crash,
            claim(database),
            code="killed",
            detail="by SIGKILL",
            retry_policy=retry_policy,
        )
    job = get(database, job_id)
    assert (job.status, job.failure["code"], job.attempt) == ("failed", "repeated_crash", 3)
    assert "the training process was killed by SIGKILL" in job.failure["message"]


def crash(database, held):
    retry_policy = RetryPolicy(max_crashes=9, backoff_seconds=0)
    do(database, claims.record_crash, held, code="killed", retry_policy=retry_policy)


def test_crashes_in_place_are_reset_when_a_job_has_got_further(database, project):
    create(database, project)
    for saved_step in (0, 1, 2, 2):
        held = claim(database, max_crashes=9)
        state = SAVED.model_copy(update={"kind": "state", "step": saved_step})
        do(database, ingest.save_state, held, state, name="state", key=f"{held.prefix}/states/{saved_step}/state")
        crash(database, held)
    job = get(database, held.job_id)
    # The last attempt has saved nothing that was not there before.
    assert (job.status, job.crashes, job.crashes_in_place) == ("queued", 4, 2)


def test_saved_verdicts_count_as_progress_until_training_continues(database, project):
    create(database, project)
    retry_policy = {"max_crashes": 9}

    def save(kind, step):
        saved = SAVED.model_copy(update={"kind": kind, "step": step})
        key = f"{held.prefix}/states/{kind}-{step}/{kind}"
        return do(database, ingest.save_state, held, saved, name=kind, key=key)

    for step in (1, 2, 2):
        held = claim(database, **retry_policy)
        save("verdicts", step)
        crash(database, held)
    job = get(database, held.job_id)
    assert (job.crashes_in_place, job.saved_step) == (2, -1)
    held = claim(database, **retry_policy)
    assert len(save("state", 0)) == 2
    assert [state.kind for state in do(database, ingest.states, held)] == ["state"]


def test_a_retry_with_verdicts_of_its_own_starts_from_the_state_of_its_original(database, claimed):
    do(database, ingest.save_state, claimed, SAVED.model_copy(update={"kind": "state"}), name="state", key="k/s/f")
    failure = Failure(code="c", message="m", hint="h", field=None, retryable=True)
    do(database, claims.fail, claimed, failure)
    do(database, lifecycle.retry, claimed.job_id)
    retry = claim(database)
    found = SAVED.model_copy(update={"kind": "verdicts", "step": 1})
    do(database, ingest.save_state, retry, found, name="verdicts", key="k/v/f")
    assert [(state.kind, state.job_id) for state in do(database, ingest.states, retry)] == [
        ("verdicts", retry.job_id),
        ("state", claimed.job_id),
    ]


def test_a_lost_job_waits_longer_each_time_but_not_for_ever(database, project):
    job_id = create(database, project)
    waits = []
    for _ in range(4):
        held = claim(database)
        retry_policy = RetryPolicy(max_crashes=9, max_crashes_in_place=9, backoff_seconds=10, max_backoff_seconds=25)
        do(database, claims.record_crash, held, code="killed", retry_policy=retry_policy)
        job = get(database, job_id)
        waits.append(round((job.not_before - job.updated_at).total_seconds()))
        assert claim(database) is None
        let_pass(database, 60)
    assert waits == [10, 20, 25, 25]
    assert claim(database).attempt == 5


def let_pass(database, seconds):
    """Let the database's clock seem to have gone on."""
    shift = timedelta(seconds=seconds)
    with database.writing() as session:
        for job in session.scalars(select(Job)):
            for name in ("lease_until", "not_before", "asked_at"):
                if moment := getattr(job, name):
                    setattr(job, name, moment - shift)


WRITES = {
    "heartbeat": lambda session, claim: claims.heartbeat(session, claim, lease_seconds=30),
    "look": claims.read_status,
    "record": lambda session, claim: ingest.record(session, claim, [step(1), reported.Entered(phase="training")]),
    "save": lambda session, claim: ingest.save(session, claim, SAVED, key="jobs/x"),
    "succeed": lambda session, claim: claims.succeed(session, claim, REPORTS),
    "fail": lambda session, claim: claims.fail(session, claim, FAILURE),
    "hand_back": claims.hand_back,
    "record_crash": lambda session, claim: claims.record_crash(
        session, claim, code="killed", retry_policy=RetryPolicy(max_crashes=5)
    ),
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
    with pytest.raises(LeaseLost):
        do(database, WRITES[write], stale)
    assert rows(database) == before


@pytest.mark.parametrize("ended", sorted(TERMINAL))
def test_an_ended_job_takes_no_write_of_its_last_owner(database, claimed, ended):
    put_in(database, claimed.job_id, ended)
    before = rows(database)
    for write in WRITES.values():
        with pytest.raises(LeaseLost):
            do(database, write, claimed)
    assert rows(database) == before


def test_what_a_run_reports_becomes_history_curve_and_progress(database, claimed):
    do(database, ingest.record, claimed, [reported.Entered(phase="training"), step(1), step(2)])
    job = get(database, claimed.job_id)
    assert job.phase == "training"
    assert (job.progress["step"], job.progress["fraction"], job.progress["seconds_remaining"]) == (2, 0.5, 4.0)
    assert [kind for _, kind in history(database, job.id)] == ["job.created", "job.claimed", "entered"]
    with database.reading() as session:
        assert session.scalars(select(Metric.step)).all() == [1, 2]


def test_progress_follows_the_attacks_of_an_evaluation(database, claimed):
    attacked = reported.Attacked(subject="base", threat="l1", attack="apgd-ce", robust=3, examples=4, done=1, total=4)
    do(database, ingest.record, claimed, [step(4), reported.Entered(phase="evaluating", subject="base"), attacked])
    progress = get(database, claimed.job_id).progress
    assert (progress["subject"], progress["attacks_done"], progress["fraction"]) == ("base", 1, 0.25)
    assert (progress["step"], progress["seconds_remaining"]) == (4, None)


def test_history_is_numbered_without_gaps_by_many_writers(database, claimed):
    def write(_):
        do(database, ingest.record, claimed, [reported.Warned(code="c", message="m")] * 3)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(20)))
    assert [seq for seq, _ in history(database, claimed.job_id)] == list(range(1, 63))


def test_a_saved_checkpoint_is_the_latest(database, claimed):
    do(database, ingest.save, claimed, SAVED, key=f"{claimed.prefix}/checkpoint.safetensors")
    job = get(database, claimed.job_id)
    with database.reading() as session:
        checkpoint = session.scalars(select(Checkpoint)).one()
    assert (job.checkpoint_id, checkpoint.job_id, checkpoint.attempt) == (checkpoint.id, job.id, 1)


def test_a_failed_job_says_why(database, claimed):
    do(database, claims.fail, claimed, FAILURE)
    job = get(database, claimed.job_id)
    assert (job.status, job.failure, job.phase) == ("failed", FAILURE.model_dump(), None)


def test_a_job_handed_back_is_no_loss(database, claimed):
    do(database, claims.hand_back, claimed)
    job = get(database, claimed.job_id)
    assert (job.status, job.crashes, job.lease_until) == ("queued", 0, None)
    assert claim(database).attempt == 2


def test_a_waiting_job_is_cancelled_at_once(database, job_id):
    job = do(database, lifecycle.ask, job_id, "cancel")
    assert (job.status, get(database, job_id).status) == ("cancelled", "cancelled")
    assert [kind for _, kind in history(database, job_id)] == ["job.created", "job.cancelling", "job.cancelled"]
    assert claim(database) is None


def test_a_running_job_is_asked_to_give_up(database, claimed):
    assert do(database, lifecycle.ask, claimed.job_id, "cancel").status == "cancelling"
    assert do(database, claims.heartbeat, claimed, lease_seconds=30) == "cancelling"
    assert do(database, claims.read_status, claimed) == "cancelling"


def test_cancelling_twice_changes_nothing_more(database, claimed):
    do(database, lifecycle.ask, claimed.job_id, "cancel")
    version = get(database, claimed.job_id).version
    assert do(database, lifecycle.ask, claimed.job_id, "cancel").version == version


@pytest.mark.parametrize("end", ["succeed", "fail", "hand_back", "record_crash"])
def test_a_job_that_is_being_cancelled_ends_cancelled_whatever_its_run_says(database, claimed, end):
    do(database, lifecycle.ask, claimed.job_id, "cancel")
    do(database, WRITES[end], claimed)
    assert get(database, claimed.job_id).status == "cancelled"


def test_a_paused_job_waits_for_its_resumption_and_goes_on_as_the_same_job(database, claimed):
    assert do(database, lifecycle.ask, claimed.job_id, "pause").status == "pausing"
    assert do(database, claims.read_status, claimed) == "pausing"
    do(database, claims.hand_back, claimed)
    job = get(database, claimed.job_id)
    assert (job.status, job.lease_until, job.crashes) == ("paused", None, 0)
    assert claim(database) is None
    assert do(database, lifecycle.ask, claimed.job_id, "resume").status == "queued"
    second = claim(database)
    assert (second.job_id, second.attempt) == (claimed.job_id, 2)
    with database.reading() as session:
        assert session.scalars(select(Attempt.outcome).order_by(Attempt.attempt)).all() == ["paused", None]


@pytest.mark.parametrize("asked", ["pause", "stop"])
def test_a_job_that_was_done_before_it_heard_of_it_has_succeeded(database, claimed, asked):
    do(database, lifecycle.ask, claimed.job_id, asked)
    do(database, claims.succeed, claimed, REPORTS)
    assert get(database, claimed.job_id).status == "succeeded"


def test_a_job_whose_worker_vanished_while_pausing_is_paused(database, project):
    job_id = create(database, project)
    claim(database, lease_seconds=-1)
    put_in(database, job_id, "pausing")
    assert claim(database) is None
    job = get(database, job_id)
    assert (job.status, job.crashes) == ("paused", 1)


def test_a_wish_to_stop_outlives_the_worker_that_was_told(database, claimed):
    do(database, lifecycle.ask, claimed.job_id, "stop")
    do(database, claims.heartbeat, claimed, lease_seconds=-1)
    second = claim(database)
    assert (second.attempt, do(database, claims.read_status, second)) == (2, "stopping")
    assert do(database, lifecycle.ask, claimed.job_id, "stop").status == "stopping"
    kinds = [kind for _, kind in history(database, claimed.job_id)]
    assert kinds[-3:] == ["job.recovered", "job.claimed", "job.stopping"]


def test_a_run_that_was_stopped_early_says_so(database, claimed):
    warning = reported.Warned(code="stopped_early", message="stopped at step 1 of 4")
    do(database, ingest.record, claimed, [step(1), warning])
    job = get(database, claimed.job_id)
    assert (job.stopped_early, job.progress["step"]) == (True, 1)


def test_a_cancel_that_a_living_worker_does_not_heed_is_forced(database, claimed):
    do(database, lifecycle.ask, claimed.job_id, "cancel")
    do(database, claims.expire, RetryPolicy(max_crashes=5, cancel_seconds=45))
    assert get(database, claimed.job_id).status == "cancelling"
    let_pass(database, 50)
    do(database, claims.heartbeat, claimed, lease_seconds=90)
    do(database, claims.expire, RetryPolicy(max_crashes=5, cancel_seconds=45))
    assert get(database, claimed.job_id).status == "cancelled"
    with pytest.raises(LeaseLost):
        do(database, claims.read_status, claimed)


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
def test_a_retry_is_one_new_job_that_goes_on_where_the_old_one_ended(database, claimed, ended):
    state = SAVED.model_copy(update={"kind": "state"})
    do(database, ingest.save_state, claimed, state, name="state", key=f"{claimed.prefix}/states/5/state")
    put_in(database, claimed.job_id, ended)
    barrier = threading.Barrier(6)

    def retry(_):
        barrier.wait()
        with database.writing() as session:
            made = lifecycle.retry(session, claimed.job_id)
            return made.job.id, made.replayed

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(retry, range(6)))
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 5
    ((new_id),) = {job_id for job_id, _ in answers}
    new, old = get(database, new_id), get(database, claimed.job_id)
    assert (new.status, new.retry_of, new.spec) == ("queued", old.id, old.spec)
    assert old.status == ended
    held = claim(database)
    assert [state.key for state in do(database, ingest.states, held)] == [f"{claimed.prefix}/states/5/state"]
    # A retry of a retry that has saved nothing of its own goes back to the first job's state.
    do(database, claims.fail, held, FAILURE)
    do(database, lifecycle.retry, new_id)
    assert len(do(database, ingest.states, claim(database))) == 1


@pytest.mark.parametrize("status", sorted(set(STATUSES) - {"failed", "cancelled"}))
def test_only_a_job_that_ended_badly_can_be_retried(database, job_id, status):
    put_in(database, job_id, status)
    with pytest.raises(NotAllowed):
        do(database, lifecycle.retry, job_id)


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_job_that_delivers_nothing_keeps_its_best_weights_as_a_checkpoint(database, claimed, end):
    for number, count in ((2, 2), (4, 4)):
        best = SAVED.model_copy(update={"kind": "best", "step": number, "size": count})
        do(
            database,
            ingest.save_state,
            claimed,
            best,
            name="best",
            key=f"{claimed.prefix}/states/best-{number}/best",
        )
    if end == "fail":
        do(database, claims.fail, claimed, FAILURE)
    else:
        do(database, lifecycle.ask, claimed.job_id, "cancel")
        do(database, claims.hand_back, claimed)
    job = get(database, claimed.job_id)
    with database.reading() as session:
        checkpoint = session.scalars(select(Checkpoint)).one()
    assert (checkpoint.id, checkpoint.step, checkpoint.size) == (job.checkpoint_id, 4, 4)
    kinds = [kind for _, kind in history(database, job.id)]
    assert (kinds[-2], kinds[-1]) == ("saved", f"job.{job.status}")
    assert [seq for seq, _ in history(database, job.id)] == list(range(1, len(kinds) + 1))


def test_of_each_kind_the_last_two_states_are_kept(database, claimed):
    outdated = []
    for number in (1, 2, 3):
        state = SAVED.model_copy(update={"kind": "state", "step": number})
        outdated += do(database, ingest.save_state, claimed, state, name=f"state-{number}", key=f"k/{number}/s")
    assert outdated == ["k/1/s"]
    assert [state.step for state in do(database, ingest.states, claimed)] == [3, 2]


def test_a_removed_job_leaves_no_row(database, claimed):
    do(database, ingest.record, claimed, [step(1), reported.Entered(phase="training")])
    do(database, ingest.save, claimed, SAVED, key="k")
    with pytest.raises(NotAllowed):
        do(database, lifecycle.remove, claimed.job_id)
    do(database, claims.succeed, claimed, REPORTS)
    do(database, lifecycle.remove, claimed.job_id)
    assert rows(database) == []


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
        lifecycle.ask(session, job_id, "cancel")
    assert refusal.value.status == ended


def test_cancel_raced_with_success_gives_one_end(database, project):
    race_cancel_with_success(database, project, rounds=15)


@pytest.mark.slow
def test_cancel_raced_with_success_gives_one_end_a_thousand_times(database, project):
    race_cancel_with_success(database, project, rounds=1000)


def race_cancel_with_success(database, project, *, rounds):
    for _ in range(rounds):
        job_id = create(database, project)
        held = claim(database)
        barrier = threading.Barrier(2)

        def cancel(job_id=job_id, barrier=barrier):
            barrier.wait()
            try:
                do(database, lifecycle.ask, job_id, "cancel")
            except NotAllowed:
                return False
            return True

        def succeed(held=held, barrier=barrier):
            barrier.wait()
            do(database, claims.succeed, held, REPORTS)

        with ThreadPoolExecutor(2) as pool:
            cancelled, _ = pool.submit(cancel), pool.submit(succeed).result()
        assert get(database, job_id).status == ("cancelled" if cancelled.result() else "succeeded")


def test_every_visible_change_makes_a_new_version_and_a_heartbeat_does_not(database, claimed):
    before = get(database, claimed.job_id).version
    do(database, claims.heartbeat, claimed, lease_seconds=30)
    assert get(database, claimed.job_id).version == before
    do(database, ingest.record, claimed, [step(1)])
    assert get(database, claimed.job_id).version == before + 1


def test_held_jobs_have_a_lease_and_others_have_none(database, claimed):
    assert get(database, claimed.job_id).lease_until
    assert "running" in CLAIMED
    do(database, claims.succeed, claimed, REPORTS)
    assert get(database, claimed.job_id).lease_until is None


def test_a_claim_names_a_place_of_its_own(claimed):
    assert Claim("job_1", 2, SPEC).prefix == "jobs/job_1/attempts/2"


def test_what_a_run_warns_of_stands_in_the_job_once(database, claimed):
    do(database, ingest.record, claimed, [step(1), reported.Warned(code="preflight_scaling", message="m", remedy="r")])
    do(database, ingest.record, claimed, [reported.Warned(code="data_left_out", message="1 file")])
    do(database, ingest.record, claimed, [reported.Warned(code="data_left_out", message="2 files"), step(2)])
    shown = [(each["code"], each["message"], each["remedy"]) for each in get(database, claimed.job_id).warnings]
    assert shown[1:] == [("preflight_scaling", "m", "r"), ("data_left_out", "2 files", "")]
