"""A large evaluation in shards: seen as one job from outside, claimed and lost one by one, and over all at once."""

import contextlib
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from app.jobs import claims, ingest, lifecycle, moves, shards
from app.jobs.claims import RetryPolicy
from app.jobs.leases import LeaseLost, Shard
from app.jobs.lifecycle import NotAllowed
from app.schemas import Failure
from app.schemas.job_request import parse_request
from app.storage import LocalStore
from app.tables import Delivery, Event, Job, Project
from core.schema import events as reported
from core.schema.report import Reports
from tests.app.operations.test_metrics import numbers
from tests.app.webhooks.test_webhooks import subscribe
from tests.support import invariants
from tests.support.instance import add_key, add_project, calling
from tests.support.sql_statements import sent

SPEC = parse_request({"kind": "evaluate", "base_model": "digits-cnn-linf"})
LARGE = {
    "kind": "evaluate",
    "base_model": "cifar10-small-linf",
    "evaluation": {"examples": 10_000, "protocol": "fast"},
}
FAILURE = Failure(code="bad_weights", message="no weights", hint="h", field="base_model", retryable=False)
REPORTS = Reports(before=None, after=None)
PATIENCE = RetryPolicy(max_crashes=5, backoff_seconds=0)


@pytest.fixture
def job_id(database, project):
    return create(database, project)


def create(database, project, **options):
    return do(database, lifecycle.create, project.id, SPEC, **{"in_shards": 3, **options}).job.id


def do(database, action, *args, **options):
    with database.writing() as session:
        return action(session, *args, **options)


def claim(database, **options):
    return do(database, claims.claim, worker="w", lease_seconds=30, retry_policy=PATIENCE, **options)


def get(database, job_id):
    """The job as it is when somebody has looked after it."""
    do(database, shards.update_parents)
    invariants.check(database)
    with database.reading() as session:
        return session.get_one(Job, job_id)


def of_shards(database, job_id):
    return [shard["status"] for shard in get(database, job_id).shards]


def history(database, job_id):
    with database.reading() as session:
        return session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.seq)).all()


@pytest.mark.parametrize(
    ("examples", "batch_size", "points", "most", "expected"),
    [
        (10_000, 250, 2000, 16, 5),
        (2000, 250, 2000, 16, 0),
        (2001, 250, 2000, 16, 2),
        (1_000_000, 250, 2000, 16, 5),  # there are no more than 10,000
        (10_000, 250, 100, 16, 16),
        (10_000, 5000, 100, 16, 2),  # a logical batch is never cut
        (10_000, 20_000, 100, 16, 0),
        (10_000, 250, 0, 16, 0),
        (10_000, 250, 2000, 1, 0),
    ],
)
@pytest.mark.parametrize("instance", ["sqlite"], indirect=True)
def test_how_many_shards_there_are(
    settings, database, project, monkeypatch, examples, batch_size, points, most, expected
):
    spec = parse_request({**LARGE, "evaluation": {"examples": examples, "batch_size": batch_size}})
    chosen = settings.model_copy(update={"shard_points": points})
    monkeypatch.setattr(shards, "MAX_SHARDS", most)
    assert do(database, shards.count, project.id, spec, chosen) == expected


@pytest.mark.parametrize("instance", ["sqlite"], indirect=True)
def test_trainings_and_data_sets_of_unknown_size_are_not_sharded(settings, database, project):
    unknown = parse_request({**LARGE, "dataset": "birds", "eps": {"linf": 0.1}})
    training = parse_request({"base_model": "cifar10-small-linf", "evaluation": {"examples": 10_000}})
    assert [do(database, shards.count, project.id, spec, settings) for spec in (unknown, training)] == [0, 0]


def test_each_shard_is_claimed_then_the_whole_to_be_merged(database, job_id):
    assert get(database, job_id).status == "queued"
    held = [claim(database) for _ in range(3)]
    assert [each.shard for each in held] == [Shard(job_id, number, 3) for number in (1, 2, 3)]
    assert {each.root_job_id for each in held} == {job_id}
    assert claim(database) is None
    job = get(database, job_id)
    assert (job.status, job.phase, job.attempt, job.lease_until) == ("running", "evaluating", 0, None)
    assert of_shards(database, job_id) == ["running"] * 3
    for each in held[1:]:
        do(database, claims.succeed, each, REPORTS)
    assert claim(database) is None
    attacked = reported.Attacked(
        subject="result", threat="linf", attack="apgd-ce", robust=1, examples=4, done=1, total=4
    )
    do(database, ingest.record, held[0], [attacked])
    assert get(database, job_id).progress["fraction"] == pytest.approx(1 / 12)
    do(database, claims.succeed, held[0], REPORTS)
    whole = claim(database)
    assert (whole.job_id, whole.shard, whole.merges) == (job_id, None, 3)
    do(database, claims.succeed, whole, REPORTS)
    job = get(database, job_id)
    assert (job.status, job.attempt, of_shards(database, job_id)) == ("succeeded", 1, ["succeeded"] * 3)
    assert job.actual["seconds"] > 0
    told = history(database, job_id)
    assert [kind for kind in told if kind != "shard"] == [
        "job.created",
        "job.running",
        "job.gathered",
        "job.claimed",
        "job.succeeded",
    ]
    assert told.count("shard") == 6


def test_a_worker_that_finds_nothing_asks_as_much_for_many_sharded_jobs_as_for_one(database, project):
    counts = []
    for more in (1, 5):
        for _ in range(more):
            create(database, project)
        while claim(database):
            pass
        with sent(database) as statements:
            assert claim(database) is None
        counts.append(len(statements))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("instance", ["sqlite"], indirect=True)  # whose plans do not depend on how many rows there are
def test_the_search_for_jobs_waiting_for_shards_reads_no_ended_job(database, project):
    with sent(database) as statements:
        do(database, shards.update_parents)
    (looked,) = [each for each in statements if each[0].startswith("SELECT")]
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {looked[0]}", looked[1]).all()
    # The index has only these jobs.
    assert plan[0].detail == "SCAN jobs USING INDEX ix_jobs_in_shards"


def test_a_lost_shard_is_made_again_alone(database, job_id):
    first, second = claim(database), claim(database)
    do(database, claims.succeed, second, REPORTS)
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == first.job_id).values(lease_until=Job.created_at))
    again = claim(database)
    assert (again.shard.number, again.attempt) == (1, 2)
    assert of_shards(database, job_id) == ["running", "succeeded", "queued"]
    assert [shard["crashes"] for shard in get(database, job_id).shards] == [1, 0, 0]
    do(database, claims.hand_back, again)
    assert (get(database, job_id).status, get(database, job_id).crashes) == ("running", 0)


def test_a_shard_that_fails_takes_all_with_it(database, job_id):
    first, second = claim(database), claim(database)
    do(database, claims.fail, second, FAILURE)
    job = get(database, job_id)
    assert (job.status, job.failure["code"], job.failure["field"]) == ("failed", "bad_weights", "base_model")
    assert job.failure["message"] == "Shard 2 of 3: no weights"
    assert do(database, claims.read_status, first) == "cancelling"
    assert claim(database) is None
    do(database, claims.hand_back, first)
    assert [shard.status for shard in do(database, shards.of_job, job_id)] == ["cancelled", "failed", "cancelled"]
    invariants.check(database)


def test_a_shard_that_is_lost_too_often_fails_the_whole_as_a_lost_worker_does(database, job_id):
    for _ in range(3):
        with database.writing() as session:
            session.execute(update(Job).where(Job.id == claim(database).job_id).values(lease_until=Job.created_at))
    do(database, claims.expire, PATIENCE)
    assert get(database, job_id).failure["code"] == "repeated_crash"


def test_a_pause_puts_all_shards_aside_and_a_resume_goes_on_with_those_that_are_left(database, job_id):
    first, second = claim(database), claim(database)
    do(database, claims.succeed, first, REPORTS)
    get(database, job_id)
    assert do(database, lifecycle.ask, job_id, "pause").status == "pausing"
    assert claim(database) is None
    assert of_shards(database, job_id) == ["succeeded", "pausing", "paused"]
    do(database, claims.hand_back, second)
    assert get(database, job_id).status == "paused"
    assert claim(database) is None
    assert do(database, lifecycle.ask, job_id, "resume").status == "queued"
    assert do(database, lifecycle.ask, job_id, "resume").status == "queued"
    rest = [claim(database), claim(database)]
    assert [each.shard.number for each in rest] == [2, 3]
    assert get(database, job_id).status == "running"
    for each in rest:
        do(database, claims.succeed, each, REPORTS)
    assert claim(database).merges == 3


def test_a_pause_that_comes_when_all_shards_are_done_keeps_the_merge_for_later(database, job_id):
    held = [claim(database) for _ in range(3)]
    get(database, job_id)
    do(database, lifecycle.ask, job_id, "pause")
    for each in held:
        do(database, claims.succeed, each, REPORTS)
    assert get(database, job_id).status == "paused"
    do(database, lifecycle.ask, job_id, "resume")
    assert claim(database).merges == 3


@pytest.mark.parametrize("held", [0, 2])
def test_a_cancel_reaches_every_shard(database, job_id, held):
    taken = [claim(database) for _ in range(held)]
    assert do(database, lifecycle.ask, job_id, "cancel").status == ("cancelling" if held else "cancelled")
    assert claim(database) is None
    for each in taken:
        assert do(database, claims.read_status, each) == "cancelling"
        do(database, claims.hand_back, each)
    assert (get(database, job_id).status, of_shards(database, job_id)) == ("cancelled", ["cancelled"] * 3)


def test_a_cancel_that_no_worker_heeds_ends_the_whole_all_the_same(database, job_id):
    claim(database)
    do(database, lifecycle.ask, job_id, "cancel")
    with database.writing() as session:
        session.execute(update(Job).values(asked_at=Job.created_at))
    do(database, claims.expire, RetryPolicy(max_crashes=5, cancel_seconds=-1))
    assert get(database, job_id).status == "cancelled"


def test_a_retry_is_in_as_many_shards_which_go_on_where_those_were(database, job_id):
    held = claim(database)
    saved = reported.Saved(kind="state", path="s", sha256="0" * 64, size=1, step=4, epoch=0)
    do(database, ingest.save_state, held, saved, name="s", key=f"{held.prefix}/states/s")
    do(database, claims.fail, held, FAILURE)
    get(database, job_id)
    again = do(database, lifecycle.retry, job_id).job
    assert (again.retry_of, again.shard_count, again.shards_left) == (job_id, 3, 3)
    assert do(database, lifecycle.retry, job_id).job.id == again.id
    other = claim(database)
    assert other.shard == Shard(again.id, 1, 3)
    assert [state.step for state in do(database, ingest.states, other)] == [4]


def test_nothing_of_shards_shows_but_through_their_job(api, database, project, settings):
    settings_of_webhook = subscribe(
        database, project, "https://example.org/hook", events=("job.running", "job.succeeded")
    )
    posted = api.post("/jobs", json=LARGE).json()
    assert [shard["number"] for shard in posted["shards"]] == [1, 2, 3, 4, 5]
    assert api.get("/me").json()["quotas"][0]["used"] == 1
    held = [claim(database) for _ in range(2)]
    do(database, shards.update_parents)
    job = api.get(f"/jobs/{posted['id']}").json()
    assert (job["status"], job["allowed_actions"]) == ("running", ["pause", "cancel"])
    assert [shard["status"] for shard in job["shards"]] == ["running"] * 2 + ["queued"] * 3
    assert [job["id"] for job in api.get("/jobs").json()["data"]] == [posted["id"]]
    used = {quota["quota"]: quota["used"] for quota in api.get("/me").json()["quotas"]}
    assert (used["queued_jobs"], used["running_jobs"]) == (0, 2)
    usage = api.get("/usage").json()
    assert usage["jobs"]["running"] == 1
    assert sum(usage["jobs"].values()) == 1
    said = numbers(database)
    assert (said["temper_jobs", ("status", "running")], said["temper_jobs", ("status", "queued")]) == (1, 0)
    assert said["temper_queue_depth",] == 3
    with database.reading() as session:
        told = session.scalars(select(Delivery).where(Delivery.webhook_id == settings_of_webhook.id)).all()
    assert [(each.type, each.job_id) for each in told] == [("job.running", posted["id"])]
    assert held[0].shard.of == posted["id"]


def test_a_shard_can_be_looked_at_and_nothing_can_be_asked_of_it(api, url, database, project):
    posted = api.post("/jobs", json=LARGE).json()
    shard_id = posted["shards"][1]["job"]
    shard = api.get(f"/jobs/{shard_id}").json()
    assert shard["shard_of"] == {"job": posted["id"], "number": 2, "count": 5}
    assert (shard["allowed_actions"], shard["shards"], shard["spec"]) == ([], None, posted["spec"])
    assert [each["type"] for each in api.get(f"/jobs/{shard_id}/events").json()["data"]] == ["job.created"]
    for action in ("pause", "stop", "cancel", "retry"):
        assert api.post(f"/jobs/{shard_id}/{action}").status_code == 409
    assert api.delete(f"/jobs/{shard_id}").status_code == 409
    with calling(url, add_key(database, add_project(database))) as stranger:
        assert stranger.get(f"/jobs/{shard_id}").status_code == 404


def test_a_dry_run_says_how_many_shards_there_would_be_and_makes_none(api, database):
    answer = api.post("/jobs", params={"dry_run": True}, json=LARGE).json()
    assert answer["shards"] == 5
    small = {**LARGE, "evaluation": {"examples": 100}}
    assert api.post("/jobs", params={"dry_run": True}, json=small).json()["shards"] == 0
    with database.reading() as session:
        assert session.scalars(select(Job)).all() == []


def test_a_limit_of_running_jobs_counts_the_shards_that_workers_have(database, project, job_id):
    with database.writing() as session:
        session.execute(update(Project).values(quotas={"running_jobs": 2}))
    assert [bool(claim(database)) for _ in range(3)] == [True, True, False]
    assert get(database, job_id).status == "running"


def test_a_deleted_job_takes_its_shards_along_and_what_they_used_is_remembered(api, database, settings, project):
    job_id = create(database, project)
    held = [claim(database) for _ in range(2)]
    store = LocalStore(settings.objects_dir)
    for each in held:
        path = settings.data_dir / "report.json"
        path.write_text(json.dumps({}))
        store.put(f"{each.prefix}/report.json", path)
    do(database, claims.fail, held[0], FAILURE)
    get(database, job_id)
    (before,) = api.get("/usage", params={"group_by": "kind"}).json()["groups"]
    assert (before["jobs"], before["worker_seconds"] > 0) == (1, True)
    assert api.delete(f"/jobs/{job_id}").status_code == 204
    assert list(store.keys("jobs")) == []
    with database.reading() as session:
        assert session.scalars(select(Job)).all() == []
    (after,) = api.get("/usage", params={"group_by": "kind"}).json()["groups"]
    assert (after["jobs"], after["worker_seconds"] >= before["worker_seconds"]) == (1, True)
    with pytest.raises(LeaseLost):
        do(database, claims.read_status, held[1])


def test_asking_a_shard_is_refused_below_the_routes_too(database, job_id):
    held = claim(database)
    for action in ("pause", "cancel"):
        with pytest.raises(NotAllowed):
            do(database, lifecycle.ask, held.job_id, action)
    with pytest.raises(NotAllowed):
        do(database, lifecycle.remove, held.job_id)


@pytest.mark.slow
@pytest.mark.parametrize("instance", ["postgres"], indirect=True)  # SQLite has one writer, so never two at once
def test_concurrent_actions_on_a_job_and_its_shards_never_deadlock(database, project):
    """Six workers and two people, each at random, and not one transaction that the database has to break off."""
    posted = [create(database, project) for _ in range(4)]
    until = time.monotonic() + 6

    def be_a_worker(seed):
        chance = random.Random(seed)
        while time.monotonic() < until:
            held = claim(database)
            if held is None:
                continue
            endings = [(claims.succeed, REPORTS), (claims.hand_back,), (claims.fail, FAILURE), None, None]
            ending = chance.choice(endings)
            with contextlib.suppress(LeaseLost):
                do(database, claims.heartbeat, held, lease_seconds=0 if ending is None else 30)
                do(database, shards.update_parents, held.root_job_id)
                if ending:
                    do(database, ending[0], held, *ending[1:])

    def be_a_person(seed):
        chance = random.Random(seed)
        while time.monotonic() < until:
            job_id = chance.choice(posted)
            action = chance.choice(["pause", "resume", "resume", "resume", "cancel", "retry"])
            with contextlib.suppress(NotAllowed):
                if action == "retry":
                    posted.append(do(database, lifecycle.retry, job_id).job.id)
                else:
                    do(database, lifecycle.ask, job_id, action)
            if chance.random() < 0.1:
                posted.append(create(database, project))

    with ThreadPoolExecutor(8) as pool:
        actors = [pool.submit(be_a_worker, seed) for seed in range(6)]
        actors += [pool.submit(be_a_person, seed) for seed in (6, 7)]
    for actor in actors:
        actor.result()
    do(database, shards.update_parents)
    invariants.check(database)
    with database.reading() as session:
        ends = set(session.scalars(select(Job.status).where(Job.parent_id.is_(None))))
    assert ends & moves.TERMINAL
