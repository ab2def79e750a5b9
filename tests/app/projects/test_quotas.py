"""Quotas and usage: counted from the rows, kept under concurrency, and told in words."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, select, update

from app.assets import inspections
from app.jobs import claims, ingest, lifecycle
from app.operations.maintenance import MaintenanceContext, watch_gpu_time
from app.projects import totals, usage
from app.schemas.job_request import parse_request
from app.tables import AT_WORK, CLAIMED, Attempt, Job, Project
from core.schema.events import Saved
from tests.support.instance import DIGITS, add_key, add_project, calling, serving
from tests.support.sql_statements import sent
from tests.support.uploading import send

SPEC = parse_request(DIGITS)
HOUR = timedelta(hours=1)


def limit(database, project, **own):
    with database.writing() as session:
        session.execute(update(Project).where(Project.id == project.id).values(quotas=own))


def claim(database, **options):
    with database.writing() as session:
        return claims.claim(
            session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5), **options
        )


def refusal(answer, quota):
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (403, "quota_exceeded"), problem
    assert problem["quota"] == quota
    assert str(problem["limit"]) in problem["detail"]
    assert "operator" in problem["detail"]
    return problem


def test_more_jobs_than_may_wait_are_refused_and_a_repeat_is_not(api, database, project):
    limit(database, project, queued_jobs=2)
    first = api.post("/jobs", json=DIGITS, headers={"Idempotency-Key": "a"})
    assert first.status_code == api.post("/jobs", json=DIGITS).status_code == 201
    problem = refusal(api.post("/jobs", json=DIGITS, headers={"Idempotency-Key": "b"}), "queued_jobs")
    assert (problem["limit"], problem["used"]) == (2, 3)
    assert len(api.get("/jobs").json()["data"]) == 2
    again = api.post("/jobs", json=DIGITS, headers={"Idempotency-Key": "a"})
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert api.post("/jobs", params={"dry_run": True}, json=DIGITS).status_code == 200
    claim(database)
    assert api.post("/jobs", json=DIGITS, headers={"Idempotency-Key": "b"}).status_code == 201


def test_the_last_place_is_given_once_to_many_who_ask_at_once(api, database, project):
    limit(database, project, queued_jobs=5, keys=4)
    with ThreadPoolExecutor(12) as pool:
        posted = list(pool.map(lambda _: api.post("/jobs", json=DIGITS).status_code, range(24)))
        made = list(pool.map(lambda _: api.post("/api_keys", json={"name": "x"}).status_code, range(12)))
    assert (posted.count(201), posted.count(403)) == (5, 19)
    assert (made.count(201), made.count(403)) == (3, 9)


def test_a_claim_passes_over_a_project_with_as_many_running_jobs_as_it_may_have(database, project):
    other = add_project(database)
    limit(database, project, running_jobs=1)
    with database.writing() as session:
        mine = [lifecycle.create(session, project.id, SPEC).job.id for _ in range(3)]
        theirs = lifecycle.create(session, other.id, SPEC).job.id
    assert {claim(database).job_id for _ in range(2)} == {mine[0], theirs}
    assert claim(database) is None
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == mine[0]).values(status="succeeded"))
    assert claim(database).job_id == mine[1]


def test_the_limit_of_running_jobs_holds_for_workers_that_claim_at_once(database, project):
    other = add_project(database)
    with database.writing() as session:
        for _ in range(10):
            lifecycle.create(session, project.id, SPEC)
            lifecycle.create(session, other.id, SPEC)
    limit(database, other, running_jobs=5)
    with ThreadPoolExecutor(12) as pool:
        for _ in range(4):
            list(pool.map(lambda _: claim(database, running_quota=3), range(12)))
    with database.reading() as session:
        held = [usage.count_jobs(session, each.id, *AT_WORK) for each in (project, other)]
    assert held == [3, 5]


def saved(size):
    return Saved(kind="checkpoint", path="/tmp/x", step=1, epoch=1.0, size=size, sha256="0" * 64)


def test_a_project_with_too_many_bytes_posts_no_more_jobs(api, database, project):
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        ingest.save(session, held, saved(1000), key="x")
    limit(database, project, stored_bytes=1000)
    assert api.post("/jobs", json=DIGITS).status_code == 201
    limit(database, project, stored_bytes=999)
    assert refusal(api.post("/jobs", json=DIGITS), "stored_bytes")["used"] == 1000


def test_an_upload_counts_with_what_jobs_have_stored(api, database, project):
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        ingest.save(session, held, saved(1000), key="x")
    limit(database, project, stored_bytes=1500)
    body = {"filename": "x", "bytes": 501, "sha256": "0" * 64, "purpose": "model"}
    assert refusal(api.post("/uploads", json=body), "stored_bytes")["used"] == 1501
    assert api.get("/uploads").json()["data"] == []
    assert api.post("/uploads", json=body | {"bytes": 500}).status_code == 201


def test_a_paused_job_is_resumed_only_where_it_may_wait(api, database, project):
    paused = api.post("/jobs", json=DIGITS).json()
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == paused["id"]).values(status="paused"))
    api.post("/jobs", json=DIGITS)
    limit(database, project, queued_jobs=1)
    refusal(api.post(f"{paused['links']['self']}/resume"), "queued_jobs")
    assert api.get(paused["links"]["self"]).json()["status"] == "paused"
    limit(database, project, queued_jobs=2)
    assert api.post(f"{paused['links']['self']}/resume").json()["status"] == "queued"
    limit(database, project, queued_jobs=1)
    assert api.post(f"{paused['links']['self']}/resume").status_code == 202, "asking again changes nothing"


def test_streams_per_key_are_limited_and_freed(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.routes.streams.MAX_STREAM_SECONDS", 1)
    limit(database, project, streams_per_key=1)
    stream = {"Accept": "text/event-stream"}
    with serving(settings, database) as url, calling(url, add_key(database, project)) as api:
        job = api.post("/jobs", json=DIGITS).json()
        with api.stream("GET", job["links"]["events"], headers=stream) as first:
            lines = first.iter_lines()  # letting go of it would close the stream
            next(lines)
            refusal(api.get(job["links"]["events"], headers=stream), "streams_per_key")
            assert api.get(job["links"]["events"]).status_code == 200
            with (
                calling(url, add_key(database, project)) as another,
                another.stream("GET", job["links"]["events"], headers=stream) as second,
            ):
                assert second.status_code == 200
        api.post(f"{job['links']['self']}/cancel")
        deadline = time.monotonic() + 60
        while api.get(job["links"]["events"], headers=stream).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def attempt(session, project, start, hours, *, device="cuda:0", gpus=2, dataset="digits"):
    """An attempt that began at a moment and took so many hours."""
    spec = parse_request({**DIGITS, "gpus": gpus, "dataset": dataset})
    job = lifecycle.create(session, project.id, spec).job
    held = Attempt(job_id=job.id, attempt=1000, worker="w", device=device, started_at=start)
    held.ended_at = start + hours * HOUR
    session.add(held)
    session.flush()
    totals.recount(session)
    return job.id


@pytest.fixture
def worked(database, project):
    """Three GPU hours of two GPUs over midnight of a month, two CPU hours in it, and another project's."""
    with database.writing() as session:
        attempt(session, project, datetime(2025, 6, 30, 23, tzinfo=UTC), 3)
        attempt(session, project, datetime(2025, 7, 2, 12, tzinfo=UTC), 2, device="cpu", gpus=1)
        attempt(session, add_project_in(session), datetime(2025, 7, 2, 12, tzinfo=UTC), 50)


def add_project_in(session):
    other = Project(name="other")
    session.add(other)
    session.flush()
    return other


JULY = {"from": "2025-07-01T00:00:00Z", "to": "2025-08-01T00:00:00Z"}


def test_usage_is_the_time_of_attempts_within_the_window(api, worked):
    told = api.get("/usage", params=JULY).json()
    assert (told["worker_seconds"], told["gpu_seconds"]) == (4 * 3600, 2 * 2 * 3600)
    in_another_zone = {"from": "2025-07-01T02:00:00+02:00", "to": "2025-08-01T02:00:00+02:00"}
    assert api.get("/usage", params=in_another_zone).json()["worker_seconds"] == 4 * 3600
    june = api.get("/usage", params={"from": "2025-06-01T00:00:00Z", "to": "2025-07-01T00:00:00Z"}).json()
    assert (june["worker_seconds"], june["gpu_seconds"]) == (3600, 2 * 3600)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("day", [("2025-07-01", 1, 7200, 14400), ("2025-07-02", 1, 7200, 0)]),
        ("month", [("2025-07", 2, 14400, 14400)]),
        ("kind", [("finetune", 2, 14400, 14400)]),
        ("dataset", [("digits", 2, 14400, 14400)]),
        ("base_model", [("digits-cnn-linf", 2, 14400, 14400)]),
    ],
)
def test_usage_is_divided_as_asked(api, worked, by, groups):
    told = api.get("/usage", params={**JULY, "group_by": by}).json()["groups"]
    assert [(each["group"], each["jobs"], each["worker_seconds"], each["gpu_seconds"]) for each in told] == groups


def test_what_a_deleted_job_has_used_still_counts(api, database, worked):
    before = api.get("/usage", params={**JULY, "group_by": "day"}).json()
    with database.writing() as session:
        for job in session.scalars(select(Job)).all():
            totals.forget_job(session, job)
        session.execute(delete(Job))
    after = api.get("/usage", params={**JULY, "group_by": "day"}).json()
    assert after == before
    with database.writing() as session:
        # The three were not ended, so they were not counted as such either.
        wrong = {key: amount for key, amount in totals.recount(session).items() if key.what != "jobs"}
        assert wrong == {}


@pytest.mark.parametrize(
    "window", [{"from": "2025-07-01"}, {"from": "2025-07-02T00:00:00Z", "to": "2025-07-01T00:00:00Z"}, {"to": "x"}]
)
def test_a_window_that_cannot_be_is_refused(api, window):
    answer = api.get("/usage", params=window)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_a_project_without_gpu_time_left_claims_nothing_until_it_has_some(settings, database, project, api):
    context = MaintenanceContext(settings, database, None, None)
    with database.writing() as session:
        attempt(session, project, datetime.now(UTC) - 2 * HOUR, 2)
    with database.reading() as session:
        month = usage.days_of(*usage.month_of(datetime.now(UTC)))
        spent = usage.gpu_seconds(session, [project.id], month)[project.id]
    limit(database, project, gpu_seconds_per_month=int(spent) - 1)
    watch_gpu_time(context)
    assert claim(database) is None
    refusal(api.post("/jobs", json=DIGITS), "gpu_seconds_per_month")
    changed = api.patch(f"/projects/{project.id}", json={"quotas": {"gpu_seconds_per_month": int(spent) + 9}})
    assert changed.json()["quotas"] == {"gpu_seconds_per_month": int(spent) + 9}
    assert claim(database) is not None


def test_checking_gpu_time_takes_as_many_queries_for_many_projects_as_for_one(settings, database, project, api):
    context, counts = MaintenanceContext(settings, database, None, None), []
    for more in (1, 5):
        for _ in range(more):
            limit(database, add_project(database), gpu_seconds_per_month=1)
        with sent(database) as statements:
            watch_gpu_time(context)
        counts.append(len(statements))
    assert counts[0] == counts[1]
    for change, looks in (({"name": "vision"}, False), ({"quotas": {"gpu_seconds_per_month": 1}}, True)):
        with sent(database) as statements:
            assert api.patch(f"/projects/{project.id}", json=change).status_code == 200
        assert any("attempts" in text for text, _ in statements) == looks


def test_gpu_time_of_many_projects_is_what_that_of_each_adds_up_to(database, worked):
    july = usage.days_of(*(datetime.fromisoformat(moment) for moment in JULY.values()))
    with database.writing() as session:
        deleted = session.scalars(select(Job).order_by(Job.id).limit(1)).one()
        totals.forget_job(session, deleted)
        session.execute(delete(Job).where(Job.id == deleted.id))
        projects = session.scalars(select(Project.id)).all()
        spent = usage.gpu_seconds(session, projects, july)
        added = {each: usage.total(usage.spent(session, each, july), july.since).gpu_seconds for each in projects}
    assert spent == pytest.approx(added, abs=0.01)
    assert sorted(spent.values()) == pytest.approx([14400, 360_000], abs=0.01)


def test_more_inspections_than_may_wait_are_refused(api, database, project):
    limit(database, project, waiting_tasks=1)
    uploads = [send(api, content) for content in (b"one", b"two")]
    assert api.post("/datasets", json={"upload": uploads[0], "name": "one"}).status_code == 201
    refusal(api.post("/datasets", json={"upload": uploads[1], "name": "two"}), "waiting_tasks")
    with database.writing() as session:
        assert inspections.claim(session, worker="w", lease_seconds=60, max_crashes=3)
    assert api.post("/datasets", json={"upload": uploads[1], "name": "two"}).status_code == 201


def test_the_limits_of_a_project_are_told_and_changed(api, project):
    assert api.patch(f"/projects/{project.id}", json={"quotas": {"queued_jobs": 3, "keys": 7}}).json()["quotas"] == {
        "queued_jobs": 3,
        "keys": 7,
    }
    assert api.patch(f"/projects/{project.id}", json={"quotas": {"keys": None}}).json()["quotas"] == {"queued_jobs": 3}
    api.post("/jobs", json=DIGITS)
    told = {each["quota"]: (each["limit"], each["used"]) for each in api.get("/me").json()["quotas"]}
    assert told == {
        "queued_jobs": (3, 1),
        "running_jobs": (None, 0),
        "waiting_tasks": (100, 0),
        "gpu_seconds_per_month": (None, 0),
        "stored_bytes": (100 * 1024**3, 0),
        "streams_per_key": (None, None),
        "keys": (100, 1),
    }
    assert api.get(f"/projects/{project.id}/quotas").json() == api.get("/me").json()["quotas"]
    assert api.get("/me").json()["rate_limit"] == {"requests": 6000, "seconds": 60}
    answer = api.patch(f"/projects/{project.id}", json={"quotas": {"kees": 1}})
    assert answer.json()["code"] == "invalid_body"


def test_what_is_counted_is_what_a_recount_of_all_rows_gives(api, database, project):
    """Whatever is done to jobs and keys, in whatever order."""
    chance, held = random.Random(4), []
    for _ in range(50):
        match chance.choice(["post", "post", "claim", "cancel", "save", "save", "fail", "key", "revoke"]):
            case "post":
                api.post("/jobs", json=DIGITS)
            case "claim":
                held += [got] if (got := claim(database)) else []
            case "cancel":
                found = api.get("/jobs", params={"status": "queued"}).json()["data"]
                if found:
                    api.post(f"{found[0]['links']['self']}/cancel")
            case "save" if held:
                with database.writing() as session:
                    ingest.save(session, held[-1], saved(chance.randrange(1000)), key=str(chance.random()))
            case "fail" if held:
                with database.writing() as session:
                    claims.hand_back(session, held.pop())
            case "key":
                api.post("/api_keys", json={"name": "x"})
            case "revoke":
                found = [key for key in api.get("/api_keys").json()["data"] if key["name"] == "x"]
                if found:
                    api.delete(f"/api_keys/{chance.choice(found)['id']}")
    api.post("/jobs", json=DIGITS)
    claim(database)
    api.post("/jobs", json=DIGITS)
    told = {each["quota"]: each["used"] for each in api.get("/me").json()["quotas"]}
    every = api.get("/jobs", params={"limit": 100}).json()["data"]
    keys = api.get("/api_keys", params={"limit": 100}).json()["data"]
    files = [
        checkpoint["size"]
        for job in every
        for checkpoint in api.get(job["links"]["checkpoints"], params={"limit": 100}).json()["data"]
    ]
    assert told["queued_jobs"] == sum(job["status"] == "queued" for job in every) > 0
    assert told["running_jobs"] == sum(job["status"] in CLAIMED for job in every) > 0
    assert told["keys"] == sum(key["revoked_at"] is None for key in keys)
    assert told["stored_bytes"] == sum(files) > 0
    with database.writing() as session:
        assert totals.recount(session) == {}
