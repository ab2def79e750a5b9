"""The whole line with nothing faked: POST, worker, `python -m core`, report, download."""

import hashlib
import json

import pytest
from safetensors.numpy import load

from core.__main__ import main as core
from tests.support.native import WORKER, finish, instance

SPEC = {
    "kind": "train",
    "architecture": "digits-cnn",
    "dataset": "digits",
    "epochs": 1,
    "train_examples": 128,
    "evaluation": {"protocol": "fast", "examples": 8},
    "seed": 7,
}


@pytest.fixture(scope="module")
def temper(tmp_path_factory):
    """A running API with a real worker."""
    with instance(tmp_path_factory.mktemp("temper"), *WORKER, concurrency=2) as temper:
        temper.start_api()
        (temper.folder / "data" / "models" / "broken.safetensors").write_bytes(b"this is no safetensors file")
        with temper.worker():
            yield temper


def test_the_service_and_the_command_line_make_the_same_checkpoint(temper, tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC))
    with temper.client() as api:
        job_id = api.post("/jobs", json=SPEC).json()["id"]
        # Beside the job, and in this process, which has torch imported.
        assert core(["train", str(spec), "--json", "--output", str(tmp_path / "run")]) == 0
        job = finish(api, job_id, seconds=100)
        assert (job["status"], job["failure"]) == ("succeeded", None)
        download = api.get(f"/checkpoints/{job['checkpoint']}/download")
        report = api.get(job["links"]["report"]).json()
        curve = api.get(job["links"]["metrics"]).json()["data"]
    assert hashlib.sha256(download.content).hexdigest() == download.headers["x-checksum-sha256"]
    ours, theirs = load(download.content), load((tmp_path / "run" / "checkpoint.safetensors").read_bytes())
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert [point["step"] for point in curve] == [1, 2]
    assert job["results"]["after"]["union"] == report["after"]["union"]


def test_a_base_model_that_is_no_safetensors_file_fails_its_job_and_nothing_else(temper):
    spec = {"base_model": "broken", "dataset": "digits", "evaluation": {"protocol": "fast", "examples": 8}}
    with temper.client() as api:
        job = finish(api, api.post("/jobs", json=spec).json()["id"], seconds=100)
        assert (job["status"], job["failure"]["code"]) == ("failed", "bad_weights")
        assert job["failure"]["hint"]
        assert api.get("/readyz").status_code == 200
