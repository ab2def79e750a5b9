"""What a base model brings to a job: its data set, its radii, what a worker must be able to build; and a new head."""

import pytest

from app.assets.architectures import packaged_networks
from app.jobs import claims, ingest, workers
from app.jobs.requirements import read_key
from app.jobs.workers import Description
from app.platform.ids import new_id
from app.schemas.job_request import parse_request
from app.tables import Dataset, Job, Model
from core.schema import events as reported
from tests.support.instance import DIGITS

TRAIN = {"kind": "train", "architecture": "digits-cnn", "dataset": "digits", "epochs": 1}


def live(database, *networks, seconds=60, is_stopping=False):
    capabilities = frozenset(f"architecture:{name}" for name in networks)
    worker = Description(new_id("wrk"), f"m:{'-'.join(networks)}", "cpu", 1, (), capabilities, {})
    with database.writing() as session:
        workers.beat(session, worker, seconds=seconds, is_stopping=is_stopping)


def made_by_job(api, database, body, *, capabilities=()):
    """Post a job and have it deliver a checkpoint; return the id of that."""
    posted = api.post("/jobs", json=body)
    assert posted.status_code == 201, posted.text
    capacity = claims.Capacity(frozenset(capabilities))
    with database.writing() as session:
        claim = claims.claim(
            session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5), capacity=capacity
        )
        assert claim is not None
        assert claim.job_id == posted.json()["id"]
        saved = reported.Saved(kind="checkpoint", path="c", sha256="1" * 64, size=10, step=1, epoch=1)
        ingest.save(session, claim, saved, key="k")
        job = session.get_one(Job, claim.job_id)
        return job.checkpoint_id


def add_model(database, project, **summary):
    said = {"shape": [1, 8, 8], "classes": 10, "architecture": "digits-cnn", **summary}
    with database.writing() as session:
        session.add(
            Model(
                id=new_id("model"),
                project_id=project.id,
                name="mine",
                status="ready",
                summary=said,
                filename="m.pt",
                key="m",
                size=1,
                sha256="1" * 64,
                declared={},
            )
        )


def add_dataset(database, project, name="four", shape=(1, 8, 8), classes=4):
    summary = {"shape": list(shape), "classes": classes, "train_examples": 40, "test_examples": 8}
    with database.writing() as session:
        session.add(
            Dataset(
                id=new_id("ds"),
                project_id=project.id,
                name=name,
                status="ready",
                summary=summary,
                filename="d.zip",
                key="d",
                size=1,
                sha256="2" * 64,
            )
        )


def dry_run(api, body):
    return api.post("/jobs", params={"dry_run": True}, json=body)


def test_a_checkpoint_brings_the_data_set_and_the_radii_of_its_job(api, database):
    checkpoint = made_by_job(api, database, DIGITS | {"eps": {"linf": 0.2, "l1": 3.0}})
    found = dry_run(api, {"base_model": checkpoint})
    assert found.status_code == 200, found.text
    spec = found.json()["spec"]
    assert (spec["dataset"], spec["eps"]) == ("digits", {"linf": 0.2, "l2": 0.5, "l1": 3.0})
    other = dry_run(api, {"base_model": checkpoint, "eps": {"linf": 0.1, "l1": 1}}).json()["spec"]
    assert other["eps"] == {"linf": 0.1, "l1": 1.0}


def test_a_checkpoint_on_a_projects_own_images_brings_those(api, database, project):
    add_dataset(database, project)
    eps = {"linf": 0.2, "l1": 3.0}
    checkpoint = made_by_job(api, database, DIGITS | {"dataset": "four", "eps": eps, "head": "new"})
    spec = dry_run(api, {"base_model": checkpoint}).json()["spec"]
    assert (spec["dataset"], spec["eps"]) == ("four", eps)
    # With another data set, its radii say nothing.
    assert dry_run(api, {"base_model": checkpoint, "dataset": "cifar10"}).json()["spec"]["eps"]["l1"] == 12.0


def test_an_uploaded_checkpoint_brings_what_its_header_says(api, database, project):
    add_model(database, project, dataset="digits", eps={"linf": 0.3})
    spec = dry_run(api, {"base_model": "mine"}).json()["spec"]
    assert (spec["dataset"], spec["eps"]) == ("digits", {"linf": 0.3, "l2": 0.5, "l1": 1.5})


def test_other_classes_are_refused_with_the_new_head_as_the_remedy(api, database, project):
    add_dataset(database, project)
    body = DIGITS | {"dataset": "four", "eps": {"linf": 0.1, "l1": 1.0}}
    for refused in (dry_run(api, body), api.post("/jobs", json=body)):
        (error,) = refused.json()["errors"]
        assert (error["pointer"], error["code"]) == ("/head", "does_not_fit")
        assert error["detail"].startswith("digits-cnn-linf has 10 classes, four has 4: set head to new")
    assert dry_run(api, body | {"head": "new"}).status_code == 200
    add_dataset(database, project, name="wide", shape=(3, 8, 8))
    (error,) = dry_run(api, body | {"head": "new", "dataset": "wide"}).json()["errors"]
    assert error["pointer"] == "/dataset"


def test_a_network_of_a_package_is_listed_and_taken_where_a_worker_has_it(api, database):
    body = TRAIN | {"architecture": "own/tiny"}
    assert "own/tiny" not in [each["id"] for each in api.get("/architectures").json()["data"]]
    (error,) = dry_run(api, body).json()["errors"]
    assert (error["pointer"], error["code"]) == ("/architecture", "unknown_name")
    assert "no worker of this service has a package that offers own/tiny; offered: none" in error["detail"]
    live(database, "timm", "own/tiny", "own/large")
    listed = api.get("/architectures").json()["data"]
    assert [each["id"] for each in listed if each["id"].startswith("own/")] == ["own/large", "own/tiny"]
    assert dry_run(api, body).status_code == 200
    (error,) = dry_run(api, body | {"architecture": "own/tinny"}).json()["errors"]
    assert "offered: own/large, own/tiny" in error["detail"]


def test_workers_that_start_again_offer_their_networks_meanwhile(database):
    live(database, "own/lost", seconds=-60)
    live(database, "own/stopping", is_stopping=True)
    with database.reading() as session:
        assert packaged_networks(session) == ["own/lost", "own/stopping"]


def test_a_job_waits_for_a_worker_that_has_its_network_and_says_so(api, database):
    live(database, "own/tiny")
    live(database, "timm")
    body = TRAIN | {"architecture": "own/tiny"}
    job = api.post("/jobs", json=body).json()
    assert job["waiting"] is None
    with database.writing() as session:
        session.query(workers.Worker).filter_by(name="m:own/tiny").delete()
    waits = api.get(f"/jobs/{job['id']}").json()["waiting"]
    assert waits["code"] == "no_suitable_worker"
    assert "it needs architecture:own/tiny" in waits["message"]
    policy = claims.RetryPolicy(max_crashes=5)
    with database.writing() as session:
        without = claims.Capacity(frozenset({"architecture:timm"}))
        assert claims.claim(session, worker="w", lease_seconds=60, retry_policy=policy, capacity=without) is None
        having = claims.Capacity(frozenset({"architecture:own/tiny"}))
        found = claims.claim(session, worker="w", lease_seconds=60, retry_policy=policy, capacity=having)
        assert found is not None
        assert found.job_id == job["id"]


def test_a_job_on_a_model_needs_what_builds_that_model(api, database, project):
    live(database, "own/tiny")
    needed = ("architecture:own/tiny",)
    checkpoint = made_by_job(api, database, TRAIN | {"architecture": "own/tiny"}, capabilities=needed)
    add_model(database, project, architecture="own/tiny")
    for base_model in (checkpoint, "mine"):
        job = api.post("/jobs", json={"base_model": base_model, "dataset": "digits"}).json()
        with database.reading() as session:
            assert read_key(session.get_one(Job, job["id"]).requires).capabilities == needed


def test_a_class_of_the_users_own_is_no_network_of_the_service(api):
    (error,) = dry_run(api, TRAIN | {"architecture": "own:nets:Net"}).json()["errors"]
    assert (error["pointer"], error["code"]) == ("/architecture", "unknown_name")
    assert "temper.architectures" in error["detail"]


@pytest.mark.parametrize("name", ["own/", "own/../x", "own:nets", "own:nets:", "own:a b:c", "own/a/b"])
def test_what_is_no_name_of_a_network_is_refused_by_the_spec(name):
    with pytest.raises(ValueError, match="there is no architecture"):
        parse_request(TRAIN | {"architecture": name})
