"""What a job may take: foretold from what has finished here, and told against what it took."""

from datetime import timedelta

import pytest
from sqlalchemy import delete, update

from app.jobs import claims, estimates, ingest, lifecycle
from app.schemas.job_request import parse_request
from app.tables import Attempt, Job
from core.schema import events as reported
from core.schema.cost_model import Size, passes_of_run
from core.schema.report import Reports

SPEC = parse_request({"base_model": "digits-cnn-linf", "seed": 1})
DIGITS = Size.of("digits")


@pytest.fixture(autouse=True)
def without_history(database):
    """What has finished here is what the test says."""
    with database.writing() as session:
        session.execute(delete(Job))


def started(spec, **sizes):
    told = {"train_examples": 1233, "extra_examples": 0, "test_examples": 500, **sizes}
    return reported.Started(
        spec=spec,
        device="cpu",
        architecture="x",
        parameters=1,
        total_steps=1,
        precision="fp32",
        base_sha256=None,
        data_sha256="0" * 64,
        versions={},
        commit=None,
        **told,
    )


def done(
    database,
    project,
    spec=SPEC,
    *,
    seconds=100.0,
    working=90.0,
    memory=1000,
    sizes=None,
    posted=None,
    stopped_early=False,
    has_finished=True,
):
    """A job that took so many seconds in its last attempt, its training process so many of them."""
    with database.writing() as session:
        job_id = posted or lifecycle.create(session, project.id, spec).job.id
        claim = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        assert claim.job_id == job_id
        ended = update(Attempt).where(Attempt.job_id == job_id)
        finished = reported.Finished(
            reports=Reports(before=None, after=None), seconds=working, peak_memory_bytes=memory
        )
        ingest.record(session, claim, [started(spec, **(sizes or {})), *([finished] if has_finished else [])])
        saved = reported.Saved(kind="checkpoint", path="/x/c", sha256="ab", size=7000, step=5, epoch=0.5)
        ingest.save(session, claim, saved, key=job_id)
        ingest.add_log(session, claim, size=300)
        session.flush()
        begun = session.get_one(Attempt, (job_id, claim.attempt), populate_existing=True).started_at
        session.execute(ended.values(started_at=begun - timedelta(seconds=seconds)))
        session.execute(update(Job).where(Job.id == job_id).values(stopped_early=stopped_early))
        claims.succeed(session, claim, finished.reports)
    return job_id


def predict(database, spec=SPEC, project_id="proj_of_somebody"):
    with database.reading() as session:
        return estimates.predict(session, project_id, spec)


def test_without_a_finished_job_nothing_is_foretold_but_the_passes(api):
    answer = api.post("/jobs", params={"dry_run": True}, json=SPEC.model_dump(mode="json")).json()["estimate"]
    assert (answer["basis"], answer["seconds"], answer["runs"]) == ("none", None, 0)
    assert "digits-cnn-linf on digits has finished here" in answer["unavailable_reason"]
    assert answer["passes"] == round(passes_of_run(SPEC, DIGITS).total)


def test_a_job_like_one_that_has_finished_takes_as_long(database, project):
    done(database, project)
    found = predict(database, SPEC.model_copy(update={"seed": 7}))
    assert (found.basis, found.runs, found.unavailable_reason) == ("history", 1, None)
    assert found.seconds.p50 == found.seconds.p90 == pytest.approx(100, abs=1)
    assert (found.peak_memory_bytes, found.storage_bytes) == (1000, 7300)


def test_more_passes_take_more_time_but_the_start_does_not(database, project):
    done(database, project, seconds=100, working=90)
    longer = SPEC.model_copy(update={"epochs": 300})
    ratio = passes_of_run(longer, DIGITS).total / passes_of_run(SPEC, DIGITS).total
    assert ratio > 1.5
    assert predict(database, longer).seconds.p50 == pytest.approx(10 + 90 * ratio, rel=0.02)


def test_the_spread_of_what_has_finished_is_the_spread_of_what_is_foretold(database, project):
    for seconds in (100, 110, 120, 130, 200):
        done(database, project, seconds=seconds, working=0)
    found = predict(database)
    assert (found.seconds.p50, found.seconds.p90) == (pytest.approx(120, abs=1), pytest.approx(172, abs=1))
    assert found.runs == 5


def test_another_job_of_the_same_network_gives_its_pace(database, project):
    evaluation = parse_request({"kind": "evaluate", "base_model": "digits-cnn-linf"})
    done(database, project, evaluation, seconds=50, working=50)
    found = predict(database)
    ratio = passes_of_run(SPEC, DIGITS).total / passes_of_run(evaluation, DIGITS).total
    assert (found.basis, found.peak_memory_bytes, found.storage_bytes) == ("passes", None, None)
    assert found.seconds.p50 == pytest.approx(50 * ratio, rel=0.05)
    scratch = parse_request({"kind": "train", "architecture": "digits-cnn", "dataset": "digits"})
    assert predict(database, scratch).basis == "passes"
    other = parse_request({"kind": "train", "architecture": "preact-resnet-8", "dataset": "digits"})
    assert predict(database, other).basis == "none"


def test_jobs_that_were_lost_stopped_or_on_other_gpus_tell_nothing(database, project):
    with database.writing() as session:
        lost = lifecycle.create(session, project.id, SPEC).job.id
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        claims.hand_back(session, held)
    done(database, project, posted=lost)
    done(database, project, stopped_early=True)
    done(database, project, SPEC.model_copy(update={"gpus": 8}))
    assert predict(database).basis == "none"


def test_other_batch_sizes_need_other_memory(database, project):
    done(database, project)
    larger = predict(database, SPEC.model_copy(update={"batch_size": 512}))
    assert (larger.basis, larger.peak_memory_bytes) == ("history", None)


def test_a_data_set_of_the_operators_is_as_large_as_runs_on_it_have_found(database, project):
    birds = parse_request(
        {"base_model": "mine", "dataset": "birds", "eps": {"linf": 0.1, "l1": 1}, "epochs": 2, "held_out": 0}
    )
    assert predict(database, birds).passes is None
    sizes = {"train_examples": 400, "test_examples": 30}
    done(database, project, birds, seconds=60, working=60, sizes=sizes)
    found = predict(database, birds, project.id)
    assert found.seconds.p50 == pytest.approx(60, abs=1)
    assert predict(database, birds).basis == "none", "another project's birds may be others"
    assert found.passes == round(passes_of_run(birds, Size(400, 30)).total)


def test_a_job_shows_what_was_foretold_and_what_it_took(api, database, project):
    done(database, project)
    job = api.post("/jobs", json=SPEC.model_dump(mode="json")).json()
    assert (job["estimate"]["basis"], job["actual"]) == ("history", None)
    assert api.post(f"{job['links']['self']}/cancel").is_success
    job_id = done(database, project, seconds=40, memory=2000)
    cancelled = api.get(job["links"]["self"]).json()
    assert cancelled["actual"] == {"seconds": 0, "peak_memory_bytes": None, "storage_bytes": 0}
    shown = api.get(f"/jobs/{job_id}").json()
    assert shown["estimate"]["seconds"]["p50"] == pytest.approx(100, abs=1)
    assert shown["actual"]["seconds"] == pytest.approx(40, abs=2)
    assert (shown["actual"]["peak_memory_bytes"], shown["actual"]["storage_bytes"]) == (2000, 7300)


def test_only_the_latest_jobs_speak(database, project):
    done(database, project, seconds=5000)
    for _ in range(estimates.MOST_RUNS):
        done(database, project, seconds=10, working=10)
    found = predict(database)
    assert (found.runs, found.seconds.p90) == (estimates.MOST_RUNS, pytest.approx(10, abs=2))


def test_a_job_without_its_story_is_passed_over(database, project):
    done(database, project, has_finished=False)
    assert predict(database).basis == "none"
