"""A worker inspects what was uploaded, in a process that opens it, and the service never does."""

import io
import os
import sys
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.models import resnet18

from app.assets.registry import Registry
from app.jobs import claims
from app.storage import LocalStore
from core import checkpoint
from core.schema.events import Failed, Warned
from tests.support.images import image, two_classes
from tests.support.processes import processes_with, wait_until
from tests.support.uploading import pack, send
from tests.support.weight_files import NOT_WEIGHTS
from worker import inspector
from worker.attempt import run
from worker.inspector import inspect_next
from worker.workplace import Workplace


@pytest.fixture
def workplace(settings, database):
    registry = Registry(settings.models_dir, settings.datasets_dir)
    return Workplace(settings, database, LocalStore(settings.objects_dir), registry)


def post_dataset(api, content, name="mine"):
    return api.post("/datasets", json={"upload": send(api, content), "name": name}).json()["id"]


def post_model(api, content, filename="theirs.pt", **said):
    upload = send(api, content, filename, "model")
    return api.post("/models", json={"upload": upload, "name": "mine", **said}).json()["id"]


def digits(bad=0):
    """Scikit-learn's digits as an ImageFolder of PNGs."""
    found = load_digits()
    entries = {}
    for number, (pixels, label) in enumerate(zip(found.images, found.target, strict=True)):
        content = io.BytesIO()
        Image.fromarray((pixels * 15.9).astype("uint8")).save(content, "PNG")
        entries[f"{'test' if number % 6 == 0 else 'train'}/{label}/{number:04}.png"] = content.getvalue()
    return pack(entries | {f"train/0/bad{number}.png": b"x" for number in range(bad)})


def as_torch(weights):
    content = io.BytesIO()
    torch.save(weights, content)
    return content.getvalue()


def shipped_weights():
    model, _ = checkpoint.load(checkpoint.base_model_file("digits-cnn-linf", None))
    return {f"module.{name}": tensor for name, tensor in model.state_dict().items()}


def test_a_data_set_is_inspected_and_shown(api, workplace):
    post_dataset(api, pack(two_classes() | {"train/cat/9.png": image(1)[:40]}))
    assert inspect_next(workplace)
    shown = api.get("/datasets/mine").json()
    assert (shown["status"], shown["shape"], shown["refused"]) == ("ready", [3, 5, 6], 1), shown
    report = api.get("/datasets/mine/report").json()
    assert report["refused_images"][0]["name"] == "train/cat/9.png"
    with Image.open(io.BytesIO(api.get(shown["thumbnails"][0]["href"]).content)) as thumbnail:
        assert thumbnail.size == (6, 5)
    assert not inspect_next(workplace)
    assert list(workplace.settings.work_dir.iterdir()) == []


def test_a_hostile_archive_is_refused_with_its_reason(api, workplace):
    post_dataset(api, pack(two_classes() | {"../../etc/passwd.png": b"x"}))
    inspect_next(workplace)
    failure = api.get("/datasets/mine").json()["failure"]
    assert failure["code"] == "bad_dataset"
    assert "can lead out of the archive" in failure["message"]


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_its_code_never_runs(api, workplace, tmp_path):
    canary = tmp_path / "canary"
    post_model(api, as_torch({"weights": shipped_weights(), "more": Canary(canary)}))
    inspect_next(workplace)
    failure = api.get("/models/mine").json()["failure"]
    assert failure["code"] == "bad_weights", failure
    assert not canary.exists()


def test_third_party_weights_become_a_base_model_as_declared(api, workplace):
    posted = post_model(api, as_torch(shipped_weights()), dataset="digits", norm="linf", eps=0.15)
    inspect_next(workplace)
    shown = api.get(f"/models/{posted}").json()
    assert (shown["status"], shown["architecture"], shown["norm"]) == ("ready", "digits-cnn", "linf"), shown
    report = api.get(shown["report"]).json()
    assert (report["source"], report["recognised"], report["sha256"]) == ("torch", True, shown["sha256"])
    assert workplace.store.size(f"models/{posted}/1/model.safetensors") == shown["size"]


def test_a_resnet_of_torchvisions_is_recognised_by_its_weights(api, workplace):
    post_model(api, as_torch(resnet18(num_classes=5).state_dict()), shape=[3, 64, 64])
    inspect_next(workplace)
    shown = api.get("/models/mine").json()
    assert (shown["status"], shown["architecture"], shown["classes"]) == ("ready", "torchvision/resnet18", 5), shown
    assert shown["alternatives"] == api.get(shown["report"]).json()["alternatives"]


def check_refusal(api, workplace, what, filename):
    make, said, remedy = NOT_WEIGHTS[what]
    upload = send(api, make(), filename, "model")
    assert api.post("/models", json={"upload": upload, "name": "mine"}).status_code == 201
    inspect_next(workplace)
    failure = api.get("/models/mine").json()["failure"]
    assert (failure["code"], failure["field"]) == ("bad_weights", "file"), failure
    assert said in failure["message"]
    assert remedy in failure["hint"]


def test_a_file_that_is_not_weights_is_refused_as_what_it_is(api, workplace):
    check_refusal(api, workplace, "a pointer of Git LFS", "theirs.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what in NOT_WEIGHTS if what != "nothing"])
def test_each_file_that_is_not_weights_is_refused_as_what_it_is(what, api, workplace):
    check_refusal(api, workplace, what, "theirs.pt")


def test_the_weights_that_were_not_taken_are_shown(api, workplace):
    weights = shipped_weights()
    raw = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    post_model(api, as_torch({"model": raw, "averaged": weights}), filename="theirs.safetensors")
    inspect_next(workplace)
    shown = api.get("/models/mine").json()
    assert (shown["status"], shown["key"], shown["other_keys"]) == ("ready", "averaged", ["model"]), shown
    report = api.get(shown["report"]).json()
    assert (report["source"], report["key"], report["other_keys"]) == ("torch", "averaged", ["model"])


@pytest.fixture
def slow(workplace, monkeypatch):
    """Have the inspection be a process that does nothing, or what a test says."""

    def slow(script):
        command = ["python", "-c", script]
        monkeypatch.setattr(inspector, "command", lambda *_: command)
        return workplace

    return slow


def test_a_file_that_kills_its_process_is_refused(api, slow):
    workplace = slow("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    post_dataset(api, b"zip")
    inspect_next(workplace)
    assert api.get("/datasets/mine").json()["failure"]["message"].endswith("it was ended by SIGSEGV.")


def test_a_process_that_does_not_end_is_killed(api, slow, monkeypatch):
    monkeypatch.setattr(inspector, "_GRACE_SECONDS", 0)
    workplace = slow("import time; time.sleep(600)  # does not end")
    workplace = replace(workplace, settings=workplace.settings.model_copy(update={"inspection_seconds": 1}))
    post_dataset(api, b"zip")
    inspect_next(workplace)
    assert api.get("/datasets/mine").json()["failure"]["code"] == "over_limit"
    assert processes_with("# does not end") == []


def test_an_inspection_killed_from_outside_is_repeated_up_to_max_crashes(api, slow):
    workplace = slow("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    post_dataset(api, b"zip")
    tries = 0
    while inspect_next(workplace):
        tries += 1
    assert tries == workplace.settings.max_crashes
    assert api.get("/datasets/mine").json()["failure"]["code"] == "inspection_lost"


def test_a_worker_that_stops_hands_the_file_back_and_leaves_no_process(api, slow):
    workplace = slow("import time; time.sleep(600)  # hands back")
    post_dataset(api, b"zip")
    thread = threading.Thread(target=inspect_next, args=(workplace,))
    thread.start()
    wait_until(lambda: processes_with("# hands back"))
    workplace.stopping.set()
    thread.join(10)
    assert api.get("/datasets/mine").json()["status"] == "pending"
    assert processes_with("# hands back") == []


def test_a_worker_that_has_lost_the_file_kills_the_process_and_writes_nothing(api, slow, database):
    workplace = slow("import time; time.sleep(600)  # lost")
    posted = post_dataset(api, b"zip")
    thread = threading.Thread(target=inspect_next, args=(workplace,))
    thread.start()
    wait_until(lambda: processes_with("# lost"))
    assert api.delete(f"/datasets/{posted}").status_code == 204
    thread.join(10)
    assert not thread.is_alive()
    assert processes_with("# lost") == []


def test_the_process_has_no_secret_and_cannot_point_the_service_elsewhere(api, slow, monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPER_S3_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    seen = tmp_path / "environment"
    script = f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(repr(dict(os.environ)))"
    workplace = slow(script)
    post_dataset(api, b"zip")
    inspect_next(workplace)
    assert "hush" not in seen.read_text()
    # It ended well and said nothing: that is no report.
    assert api.get("/datasets/mine").json()["failure"]["code"] == "inspection_crashed"


def test_a_damaged_object_is_not_inspected(api, workplace, settings):
    post_dataset(api, b"zip")
    (object_,) = [path for path in settings.objects_dir.rglob("uploads/**/*") if path.is_file()]
    object_.write_bytes(b"zap")
    while inspect_next(workplace):
        pass
    assert api.get("/datasets/mine").json()["failure"]["code"] == "inspection_lost"
    assert list(settings.cache_dir.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_uploaded_data_set_and_model_become_a_robust_model_and_the_next_base(api, workplace, claim_job):
    post_dataset(api, digits(bad=2), "my-digits")
    inspect_next(workplace)
    post_model(api, as_torch(shipped_weights()), dataset="digits", norm="linf", eps=0.15)
    inspect_next(workplace)
    body = {
        "base_model": "mine",
        "dataset": "my-digits",
        "eps": {"linf": 0.15, "l2": 0.5, "l1": 1.5},
        "epochs": 1,
        "held_out": 0,
        "evaluation": {"protocol": "fast", "examples": 32},
    }
    first = api.post("/jobs", json=body).json()["id"]
    run(claim_job(workplace), workplace)
    job = api.get(f"/jobs/{first}").json()
    assert job["status"] == "succeeded", job["failure"]
    events = api.get(f"/jobs/{first}/events").json()["data"]
    started = next(event["data"] for event in events if event["type"] == "started")
    shown = api.get("/datasets/my-digits").json()
    assert started["train_examples"] == shown["train_examples"]
    assert started["base_sha256"] == api.get("/models/mine").json()["sha256"]
    assert shown["refused"] == 2
    # Straight on from its checkpoint, and from a model made of it.
    second = api.post("/jobs", json=body | {"base_model": job["checkpoint"]}).json()["id"]
    run(claim_job(workplace), workplace)
    assert api.get(f"/jobs/{second}").json()["status"] == "succeeded"
    api.post("/models", json={"checkpoint": job["checkpoint"], "name": "robust"})
    inspect_next(workplace)
    assert api.delete(f"/jobs/{first}").status_code == 204
    third = api.post("/jobs", json=body | {"base_model": "robust"}).json()["id"]
    run(claim_job(workplace), workplace)
    assert api.get(f"/jobs/{third}").json()["status"] == "succeeded"
    assert api.get(f"/jobs/{third}/lineage").json()["ancestors"] == [first]


@pytest.fixture
def claim_job():

    def claim_job(workplace):
        with workplace.database.writing() as session:
            retry_policy = claims.RetryPolicy.of(workplace.settings)
            return claims.claim(session, worker="w", lease_seconds=60, retry_policy=retry_policy)

    return claim_job


def test_warnings_of_an_inspection_are_logged(api, workplace, monkeypatch, caplog):
    warning = Warned(code="not_cut_off", message="this process can reach the network").model_dump_json()
    failed = Failed(code="bad_dataset", message="no", hint="none", field=None, retryable=False).model_dump_json()
    said = f"print({warning!r}); print({failed!r}); raise SystemExit(2)"
    monkeypatch.setattr(inspector, "command", lambda *_: [sys.executable, "-c", said])
    dataset = post_dataset(api, b"zip")
    assert inspect_next(workplace)
    assert f"dataset {dataset}: this process can reach the network" in caplog.text
    assert api.get(f"/datasets/{dataset}").json()["failure"]["code"] == "bad_dataset"
