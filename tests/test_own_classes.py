"""Own classes and own networks on the real service: uploaded by the command, hardened by a real worker, downloaded."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from core import checkpoint, data
from tests.support.native import WORKER, finish, instance
from tests.support.packages import write_package
from tests.support.processes import wait_until
from tests.support.uploading import pack

# Four runs of a real worker, in interpreters of their own.
pytestmark = pytest.mark.slow
_QUICK = {"epochs": 1, "held_out": 0, "evaluation": {"protocol": "fast", "examples": 12}}


@pytest.fixture(scope="module")
def temper(tmp_path_factory):
    """A running API with a real worker, beside which a package with networks is installed."""
    folder = tmp_path_factory.mktemp("temper")
    with instance(folder, *WORKER, concurrency=2) as temper:
        temper.start_api()
        # Not on the path of the API, which only knows what its workers announce.
        worker = {**temper.environment}
        worker["PYTHONPATH"] = f"{worker['PYTHONPATH']}{os.pathsep}{write_package(folder)}"
        temper.environment, api = worker, temper.environment
        temper.forked = False  # a fork has the path of this process
        temper.start_worker()
        temper.environment = api
        yield temper


def four_classes():
    """Make an archive of four classes of the user's own: digits by name, as pictures of 8 x 8."""
    part = data.load("digits").train
    names = ("zero", "one", "two", "three")
    files, taken = {}, dict.fromkeys(range(4), 0)
    for pixels, label in zip(part.pixels.tolist(), part.labels.tolist(), strict=True):
        if label in taken and taken[label] < 20:
            content = io.BytesIO()
            Image.fromarray(np.array(pixels[0], dtype=np.uint8) * 15).save(content, "PNG")
            folder = "test" if taken[label] < 4 else "train"
            files[f"{folder}/{names[label]}/{taken[label]}.png"] = content.getvalue()
            taken[label] += 1
    return pack(files)


def submit(api, body, **options):
    posted = api.post("/jobs", json=body | _QUICK, **options)
    assert posted.status_code in (200, 201), posted.text
    return posted.json()


def download(api, job, path):
    path.write_bytes(api.get(f"/checkpoints/{job['checkpoint']}/download").content)
    return checkpoint.load(path)


def test_four_own_classes_on_a_shipped_base_with_a_new_head(temper, tmp_path):
    (tmp_path / "four.zip").write_bytes(four_classes())
    added = temper.temper("datasets", "add", str(tmp_path / "four.zip"), "--name", "four")
    assert added.returncode == 0, added.stderr
    body = {"base_model": "digits-cnn-linf", "dataset": "four", "eps": {"linf": 0.15, "l2": 0.5, "l1": 1.5}}
    with temper.client() as api:
        refused = api.post("/jobs", json=body, params={"dry_run": True}).json()["errors"]
        assert [error["pointer"] for error in refused] == ["/head"]
        assert "set head to new" in refused[0]["detail"]
        body |= {"head": "new", "linear_probe_epochs": 2, "head_learning_rate": 0.1}
        job = finish(api, submit(api, body)["id"], seconds=100)
        assert (job["status"], job["failure"]) == ("succeeded", None)
        assert job["results"]["before"] is None
        model, header = download(api, job, tmp_path / "four.safetensors")
        assert header.class_names == ("one", "three", "two", "zero")
        images = torch.rand(2, 1, 8, 8)
        assert model(images).shape == (2, 4)
        # Four classes in a linear probe: better than guessing.
        assert job["results"]["after"]["clean"]["value"] > 0.4
        # The checkpoint is the next base, with its data set and radii, and keeps its head.
        again = submit(api, {"base_model": job["checkpoint"]})
        assert (again["spec"]["dataset"], again["spec"]["eps"]) == ("four", body["eps"])
        second = finish(api, again["id"], seconds=100)
        assert (second["status"], second["failure"]) == ("succeeded", None)
        assert second["results"]["before"]["clean"] == job["results"]["after"]["clean"]


def test_a_package_beside_the_worker_is_trained_and_fine_tuned(temper, tmp_path):
    with temper.client() as api:
        wait_until(lambda: "own/tiny" in [each["id"] for each in api.get("/architectures").json()["data"]])
        quick = {"train_examples": 64}
        base = submit(api, {"kind": "train", "architecture": "own/tiny", "dataset": "digits", **quick})
        base = finish(api, base["id"], seconds=100)
        assert (base["status"], base["failure"]) == ("succeeded", None)
        tuned = finish(api, submit(api, {"base_model": base["checkpoint"], **quick})["id"], seconds=100)
        assert (tuned["status"], tuned["failure"]) == ("succeeded", None)
        # One that no worker can build was never queued.
        other = {"kind": "train", "architecture": "own/other", "dataset": "digits"}
        assert api.post("/jobs", json=other).json()["errors"][0]["pointer"] == "/architecture"
