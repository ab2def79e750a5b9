"""Data sets and models of a project's own: posted, inspected, named by jobs, shown, removed."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.assets import inputs, inspections
from app.jobs import claims, ingest, lifecycle
from app.operations import garbage_collection
from app.operations.garbage_collection import sweep_asset_files
from app.platform.leases import LeaseLost
from app.projects import usage
from app.schemas import AssetFailure
from app.schemas.job_request import parse_request
from app.tables import Dataset, Job, Model, Upload
from core.schema.events import Saved
from core.schema.inspection_report import DatasetInspection, Doubles, ModelInspection, Thumbnail
from core.schema.preprocessing import Preprocessing, Sizes
from core.schema.progress import WarningRecord
from tests.support.instance import DIGITS, add_key, add_project, calling
from tests.support.uploading import send

REFUSAL = AssetFailure(code="bad_dataset", message="It holds a link.", hint="Put the files in.", field="dataset")
EPS = {"linf": 0.1, "l1": 1.0}


def dataset_findings(**changed):
    found = {
        "sha256": "0" * 64,
        "size": 3,
        "shape": (1, 8, 8),
        "classes": tuple("0123456789"),
        "train": dict.fromkeys("0123456789", 3),
        "test": dict.fromkeys("0123456789", 1),
        "format": "class folders",
        "sizes": Sizes.of({(8, 8): 40}),
        "preprocessing": Preprocessing(),
        "proposal": None,
        "test_share": None,
        "names_file": None,
        "root": "",
        "folders": {"train": "train", "test": "test"},
        "held_out": {},
        "unread": 3,
        "unread_by_reason": {"it is not an image": 3},
        "unread_files": (),
        "transparent": 4,
        "held_out_overlap": Doubles(count=0, examples=()),
        "repeated": {"train": Doubles(count=5, examples=()), "test": Doubles(count=1, examples=())},
        "conflicting": Doubles(count=2, examples=()),
        "warnings": (WarningRecord(code="data_transparent", message="4 are clear", remedy="fill them"),),
        "refused": 2,
        "refused_by_reason": {"truncated": 2},
        "refused_images": (),
        "overlap": Doubles(count=1, examples=()),
        "thumbnails": (Thumbnail(file="thumbnail-0.png", name="train/0/1.png", part="train", label="0"),),
    }
    return DatasetInspection(**(found | changed))


def model_findings(**changed):
    found = {
        "source": "torch",
        "source_sha256": "0" * 64,
        "sha256": "1" * 64,
        "size": 5,
        "architecture": "digits-cnn",
        "recognised": True,
        "parameters": 7,
        "shape": (1, 8, 8),
        "classes": 10,
        "mean": (),
        "std": (),
        "left_out": 0,
        "claims": {"linf": 0.1},
        "base_sha256": None,
        "data_sha256": None,
        "looked_at": "digits",
        "warnings": (),
    }
    return ModelInspection(**(found | changed))


@pytest.fixture
def api(url, database, project):
    with calling(url, add_key(database, project)) as api:
        yield api


def post_dataset(api, name="birds", content=b"zip"):
    return api.post("/datasets", json={"upload": send(api, content), "name": name})


def claim(database, worker="w", **changed):
    with database.writing() as session:
        return inspections.claim(session, worker=worker, **{"lease_seconds": 60, "max_crashes": 3} | changed)


def accept(database, service_store, held, folder):
    """End an inspection well, with what it delivers."""
    found = dataset_findings() if held.kind == "dataset" else model_findings()
    (folder / "file").write_bytes(found.model_dump_json().encode())
    for name in ("report.json", "thumbnail-0.png", "model.safetensors"):
        service_store.put(f"{held.prefix}/{name}", folder / "file")
    key = held.key if held.kind == "dataset" else f"{held.prefix}/model.safetensors"
    with database.writing() as session:
        inspections.accept(session, held, found, key=key, size=3, sha256="2" * 64)


def test_radii_are_proposed_for_a_data_set_without_any_and_never_filled_in(api, ready):
    body = {"base_model": "mine", "dataset": "birds"}
    for change, proposed in (({}, '{"linf": "8/255"'), ({"preprocessing": {"image_size": 224}}, '{"linf": "4/255"')):
        refused = api.post("/jobs", params={"dry_run": True}, json=body | change)
        assert refused.status_code == 422
        (error,) = [each for each in refused.json()["errors"] if each["pointer"] == "/eps"]
        assert f"for images of this size that could be {proposed}" in error["detail"]
        assert "covers l2" in error["detail"]


def test_a_data_sets_preprocessing_is_that_of_its_jobs_unless_they_say_otherwise(api, database, store, tmp_path):
    declared = {"preprocessing": {"image_size": 8, "resize": "pad"}, "test_share": 0.2}
    made = api.post("/datasets", json={"upload": send(api, b"zip"), "name": "birds", **declared})
    assert made.status_code == 201
    assert made.json()["preprocessing"]["resize"] == "pad"
    held = claim(database)
    assert held.declared.model_dump(exclude_defaults=True) == declared
    accept(database, store, held, tmp_path)
    body = {"base_model": "digits-cnn-linf", "dataset": "birds", "eps": EPS}
    dry_run = {"params": {"dry_run": True}}
    filled = api.post("/jobs", **dry_run, json=body).json()["spec"]
    assert filled["preprocessing"] | declared["preprocessing"] == filled["preprocessing"]
    assert filled["test_share"] == 0.2
    other = api.post("/jobs", **dry_run, json=body | {"preprocessing": {"interpolation": "bicubic"}}).json()["spec"]
    assert (other["preprocessing"]["resize"], other["preprocessing"]["interpolation"]) == ("pad", "bicubic")
    larger = api.post("/jobs", **dry_run, json=body | {"preprocessing": {"image_size": 32}}).json()
    assert "set preprocessing.image_size to 8" in larger["errors"][0]["detail"]
    wrong = {"upload": "upl_x", "name": "birds", "preprocessing": {"image_size": 4}}
    refused = api.post("/datasets", json=wrong)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/preprocessing/image_size")


@pytest.fixture
def store(settings):
    from app.storage import open_store

    return open_store(settings)


@pytest.fixture
def ready(api, database, store, tmp_path):
    """A data set and a model that are ready."""
    made = [post_dataset(api).json()]
    upload = send(api, b"weights", "w.pt", "model")
    made.append(api.post("/models", json={"upload": upload, "name": "mine", "dataset": "digits"}).json())
    for _ in made:
        accept(database, store, claim(database), tmp_path)
    return made


def spec(**changed):
    return {"base_model": "mine", "dataset": "birds", "eps": EPS} | changed


def test_a_data_set_waits_for_its_inspection_and_is_then_ready_and_shown(api, database, store, tmp_path):
    answer = post_dataset(api)
    assert (answer.status_code, answer.json()["status"]) == (201, "pending")
    here = answer.headers["Location"]
    assert api.get(f"{here}/report").json()["code"] == "not_inspected"
    held = claim(database)
    assert api.get(here).json()["status"] == "inspecting"
    accept(database, store, held, tmp_path)
    shown = api.get("/datasets/birds").json()
    assert shown == api.get(here).json()
    assert (shown["status"], shown["shape"], shown["classes"]) == ("ready", [1, 8, 8], 10)
    assert (shown["train_examples"], shown["test_examples"], shown["refused"], shown["overlap"]) == (30, 10, 2, 1)
    counted = ("held_out_examples", "unread", "transparent", "repeated", "conflicting")
    assert [shown[name] for name in counted] == [0, 3, 4, 6, 2]
    assert shown["warnings"] == [
        {"code": "data_transparent", "message": "4 are clear", "remedy": "fill them", "threat": None}
    ]
    assert api.get(shown["report"]).json()["refused_by_reason"] == {"truncated": 2}
    thumbnail = api.get(shown["thumbnails"][0]["href"])
    assert (thumbnail.status_code, thumbnail.headers["content-type"]) == (200, "image/png")
    assert api.get(f"{here}/thumbnails/1").status_code == 404
    for address in (f"{here}/report", shown["thumbnails"][0]["href"]):
        known = {"If-None-Match": api.get(address).headers["etag"]}
        assert api.get(address, headers=known).status_code == 304
    assert [each["name"] for each in api.get("/datasets").json()["data"]][-1] == "birds"


def test_a_refused_data_set_says_why_and_gives_its_name_back(api, database):
    post_dataset(api)
    held = claim(database)
    with database.writing() as session:
        inspections.refuse(session, held, REFUSAL)
    shown = api.get("/datasets/birds").json()
    assert (shown["status"], shown["failure"]["message"]) == ("refused", "It holds a link.")
    refused = api.post("/jobs", json=DIGITS | {"dataset": "birds", "eps": EPS})
    assert [(error["pointer"], error["code"]) for error in refused.json()["errors"]] == [("/dataset", "refused_file")]
    again = post_dataset(api, content=b"other")
    assert again.status_code == 201
    assert api.get(f"/datasets/{shown['id']}").status_code == 404
    with database.reading() as session:
        assert [usage.uploaded_bytes(session, session.get_one(Dataset, again.json()["id"]).project_id)] == [5]


def test_a_refused_model_is_posted_again_with_more_said_of_the_same_upload(api, database):
    upload = send(api, b"weights", "w.pt", "model")
    body = {"upload": upload, "name": "mine"}
    assert api.post("/models", json=body).status_code == 201
    held = claim(database)
    with database.writing() as session:
        inspections.refuse(session, held, REFUSAL)
    assert api.post("/models", json=body | {"architecture": "digits-cnn"}).status_code == 201
    assert claim(database).declared.architecture == "digits-cnn"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"name": "digits"}, 409, "name_taken"),
        ({"name": "birds"}, 409, "name_taken"),
        ({"name": "a b"}, 422, "invalid_body"),
        ({"name": ""}, 422, "invalid_body"),
        ({"name": "ds_01KAXXXXXXXXXXXXXXXXXXXXXX"}, 422, "invalid_body"),
        ({"upload": "upl_01KAXXXXXXXXXXXXXXXXXXXXXX"}, 422, "invalid_body"),
        ({"more": 1}, 422, "invalid_body"),
    ],
)
def test_a_data_set_that_cannot_be_made_is_told_why(change, status, code, api):
    post_dataset(api)
    answer = api.post("/datasets", json={"upload": send(api, b"other"), "name": "other"} | change)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_an_upload_is_one_file_only_and_of_one_purpose(api):
    upload = send(api, b"zip")
    assert api.post("/datasets", json={"upload": upload, "name": "one"}).status_code == 201
    for path, name in (("/datasets", "two"), ("/models", "three")):
        answer = api.post(path, json={"upload": upload, "name": name})
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_not_usable"), answer.text
    body = {"filename": "x.zip", "bytes": 3, "sha256": "0" * 64, "purpose": "dataset"}
    pending = api.post("/uploads", json=body).json()["id"]
    assert api.post("/datasets", json={"upload": pending, "name": "four"}).json()["code"] == "upload_not_usable"


@pytest.mark.parametrize(
    "body",
    [{}, {"upload": "a", "checkpoint": "b"}, {"checkpoint": "b", "architecture": "resnet-18"}, {"checkpoint": "b"}],
)
def test_a_model_is_made_of_an_upload_or_of_a_checkpoint(body, api):
    answer = api.post("/models", json=body | {"name": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_body"), answer.text


def test_a_file_that_is_not_ready_is_not_named_by_jobs(api):
    post_dataset(api)
    answer = api.post("/jobs", json=DIGITS | {"dataset": "birds", "eps": EPS}).json()
    assert [(error["pointer"], error["code"]) for error in answer["errors"]] == [("/dataset", "not_ready")]


def test_an_unknown_name_is_compared_with_the_projects_own(api, ready):
    answer = api.post("/jobs", json=spec(dataset="brids")).json()
    assert "birds" in answer["errors"][0]["detail"]


def test_what_does_not_fit_is_refused_before_it_runs(api, ready):
    answer = api.post("/jobs", json=spec(base_model="cifar10-small-linf")).json()
    assert [error["code"] for error in answer["errors"]] == ["does_not_fit"]
    assert api.post("/jobs?dry_run=true", json=spec(base_model="digits-cnn-linf")).status_code == 200


@pytest.mark.parametrize("field", ["dataset", "base_model", "extra_dataset"])
def test_a_file_stays_until_the_jobs_that_take_it_in_have_ended(field, api, database, ready):
    body = {
        "dataset": spec(base_model="digits-cnn-linf"),
        "base_model": {"base_model": "mine", "dataset": "digits"},
        "extra_dataset": DIGITS | {"extra_dataset": "birds"},
    }[field]
    job = api.post("/jobs", json=body).json()
    where = "/models/mine" if field == "base_model" else "/datasets/birds"
    refused = api.delete(where)
    assert (refused.status_code, refused.json()["code"]) == (409, "file_in_use"), refused.text
    assert job["id"] in refused.json()["detail"]
    with database.reading() as session:
        (source,) = inputs.input_files(session, job["id"], parse_request(body))
    assert (source.field, source.sha256) == (field, "2" * 64)
    api.post(f"/jobs/{job['id']}/cancel")
    assert api.delete(where).status_code == 204
    assert api.get(where).status_code == 404
    # What it was stays known.
    assert api.get(f"/jobs/{job['id']}/lineage").json()["inputs"][0]["sha256"] == "2" * 64


def test_a_repeated_request_finds_its_job_after_the_data_set_has_gone(api, ready):
    key = {"Idempotency-Key": "k"}
    job = api.post("/jobs", json=spec(), headers=key).json()
    clone = api.post(f"/jobs/{job['id']}/clone", json={}, headers={"Idempotency-Key": "c"}).json()
    for each in (job, clone):
        api.post(f"/jobs/{each['id']}/cancel")
    assert api.delete("/datasets/birds").status_code == 204
    again = api.post("/jobs", json=spec(), headers=key)
    assert (again.status_code, again.json()["id"]) == (201, job["id"])
    again = api.post(f"/jobs/{job['id']}/clone", json={}, headers={"Idempotency-Key": "c"})
    assert (again.status_code, again.json()["id"]) == (201, clone["id"])
    for changed in ({"epochs": 1}, {"seed": 5}):
        assert api.post("/jobs", json=spec() | changed, headers=key).status_code == 422
    assert api.post("/jobs", json=spec()).status_code == 422


def test_a_data_set_is_never_removed_under_a_job_that_is_just_posted(api, database, ready):
    with ThreadPoolExecutor(4) as pool:
        posted = [pool.submit(api.post, "/jobs", json=spec()) for _ in range(3)]
        removed = pool.submit(api.delete, "/datasets/birds").result()
        answers = [each.result() for each in posted]
    there = api.get("/datasets/birds").status_code == 200
    assert there == (removed.status_code == 409)
    # Without it a job was refused, or says itself that it has nothing to read.
    assert {answer.status_code for answer in answers} <= {201, 422}
    assert there or any(answer.status_code == 422 for answer in answers) or removed.status_code == 204


def test_what_is_deleted_leaves_no_object_and_no_room_behind(api, database, store, ready, project):
    api.delete("/datasets/birds")
    api.delete("/models/mine")
    sweep_asset_files(database, store)
    assert [key for kind in ("datasets", "models") for key in store.keys(kind)] == []
    with database.reading() as session:
        assert usage.uploaded_bytes(session, project.id) == 0
        assert {upload.status for upload in session.query(Upload)} == {"aborted"}


def test_what_is_ready_keeps_its_objects_and_what_a_stale_inspection_left_goes(api, database, store, ready, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    store.put(f"{inspections.prefix('dataset', ready[0]['id'], 0)}/report.json", tmp_path / "file")
    sweep_asset_files(database, store)
    keys = list(store.keys("datasets"))
    assert {key.split("/")[2] for key in keys} == {"1"}
    assert api.get("/datasets/birds/report").status_code == 200


def test_the_sweep_of_files_goes_on_where_it_stopped(database, store, tmp_path, monkeypatch):
    monkeypatch.setattr(garbage_collection, "_AT_ONCE", 1)
    monkeypatch.setattr(garbage_collection, "_SWEEP_SECONDS", -1)
    (tmp_path / "file").write_bytes(b"x")
    for number in range(3):
        store.put(f"{inspections.prefix('dataset', f'ds_{number}', 1)}/report.json", tmp_path / "file")
    places = {kind: garbage_collection.Place() for kind in ("dataset", "model")}
    for left in (2, 1, 0, 0):
        sweep_asset_files(database, store, places)
        assert len(list(store.keys("datasets"))) == left
    store.put(f"{inspections.prefix('dataset', 'ds_0', 2)}/report.json", tmp_path / "file")
    sweep_asset_files(database, store, places)
    assert len(list(store.keys("datasets"))) == 1, "the next sweep begins after a pause"


def test_an_inspection_whose_worker_is_lost_is_begun_again_but_not_for_ever(api, database):
    post_dataset(api)
    stale = claim(database, lease_seconds=-1)
    second = claim(database, lease_seconds=-1)
    assert second.attempt == 2
    with database.writing() as session, pytest.raises(LeaseLost):
        inspections.accept(session, stale, dataset_findings(), key="x", size=1, sha256="0" * 64)
    third = claim(database, lease_seconds=-1)
    assert third.attempt == 3
    assert claim(database) is None
    assert api.get("/datasets/birds").json()["failure"]["code"] == "inspection_lost"


def test_two_workers_do_not_inspect_one_file(api, database):
    post_dataset(api)
    with ThreadPoolExecutor(4) as pool:
        held = [each for each in pool.map(lambda _: claim(database), range(4)) if each]
    assert len(held) == 1
    with database.writing() as session:
        inspections.hand_back(session, held[0])
    assert claim(database).attempt == 2


def finished_job(database, project, **changed):
    """A job that has delivered a checkpoint."""
    with database.writing() as session:
        job = lifecycle.create(session, project.id, parse_request(DIGITS | changed)).job
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        saved = Saved(kind="checkpoint", path="/tmp/x", step=1, epoch=1.0, size=4, sha256="3" * 64)
        ingest.save(session, held, saved, key=f"jobs/{job.id}/x")
    with database.reading() as session:
        return job.id, session.get_one(Job, job.id).checkpoint_id


def test_a_checkpoint_is_the_base_of_the_next_job_and_lineage_tells(api, database, project, store, tmp_path):
    first, checkpoint = finished_job(database, project)
    second = api.post("/jobs", json={"base_model": checkpoint, "dataset": "digits"}).json()
    lineage = api.get(f"/jobs/{second['id']}/lineage").json()
    assert lineage["ancestors"] == [first]
    assert lineage["inputs"][0] == {
        "field": "base_model",
        "id": checkpoint,
        "sha256": "3" * 64,
        "made_by": {"job": first, "checkpoint": checkpoint},
    }
    model = api.post("/models", json={"checkpoint": checkpoint, "name": "mine"}).json()
    assert model["made_by"] == {"job": first, "checkpoint": checkpoint}
    accept(database, store, claim(database), tmp_path)
    third = api.post("/jobs", json={"base_model": "mine", "dataset": "digits"}).json()
    assert api.get(f"/jobs/{third['id']}/lineage").json()["ancestors"] == [first]
    assert api.get(f"/jobs/{first}/lineage").json()["dependents"] == [
        {"object": "job", "id": second["id"], "name": ""},
        {"object": "job", "id": third["id"], "name": ""},
        {"object": "model", "id": model["id"], "name": "mine"},
    ]
    assert lineage["dependents"] == []


def test_names_and_ids_of_another_project_are_as_good_as_none(api, url, database, ready):
    other = add_project(database)
    _, checkpoint = finished_job(database, other)
    upload_id = next(each["id"] for each in api.get("/uploads").json()["data"])
    assert api.post("/models", json={"checkpoint": checkpoint, "name": "theirs"}).status_code == 422
    assert api.post("/jobs", json={"base_model": checkpoint, "dataset": "digits"}).status_code == 422
    with calling(url, add_key(database, other)) as stranger:
        for name in ("birds", ready[0]["id"]):
            answer = stranger.post("/jobs", json=DIGITS | {"dataset": name, "eps": EPS})
            assert answer.json()["errors"][0]["code"] == "unknown_name"
            assert "birds" not in answer.text.replace(name, "")
            assert stranger.get(f"/datasets/{name}").status_code == 404
            assert stranger.delete(f"/datasets/{name}").status_code == 404
        assert "birds" not in stranger.get("/datasets").text
        assert stranger.post("/datasets", json={"upload": upload_id, "name": "stolen"}).status_code == 422
        # The same name is free for them.
        assert post_dataset(stranger).status_code == 201
    with database.reading() as session:
        assert session.query(Model).count() == 1


def test_a_job_stays_until_the_model_that_is_made_of_its_checkpoint_has_its_own_copy(api, database, project):
    job_id, checkpoint = finished_job(database, project)
    api.post(f"/jobs/{job_id}/cancel")
    with database.writing() as session:
        claims.expire(session, claims.RetryPolicy(max_crashes=5, cancel_seconds=-1))
    model = api.post("/models", json={"checkpoint": checkpoint, "name": "mine"}).json()["id"]
    for inspect in (lambda: None, lambda: claim(database)):
        inspect()
        refused = api.delete(f"/jobs/{job_id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "file_in_use")
        assert model in refused.json()["detail"]
    assert api.delete("/models/mine").status_code == 204
    assert api.delete(f"/jobs/{job_id}").status_code == 204


def test_a_copy_of_a_checkpoint_takes_room_of_the_project(api, database, project):
    _, checkpoint = finished_job(database, project)
    with database.reading() as session:
        before = usage.uploaded_bytes(session, project.id)
    api.post("/models", json={"checkpoint": checkpoint, "name": "mine"})
    with database.reading() as session:
        assert usage.uploaded_bytes(session, project.id) == before + 4
