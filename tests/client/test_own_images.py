"""Photos of mixed size on a real service: refused with a proposal, added with it, and trained on."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.support.image_formats import npy, parquet, zip_of
from tests.support.images import write
from tests.support.live_service import Service
from tests.support.photos import photo, photos

_JOB = {
    "kind": "train",
    "architecture": "preact-resnet-8",
    "dataset": "photos",
    "method": {"name": "single", "norms": ["linf"], "steps": 1},
    "epochs": 1,
    "evaluation": {"protocol": "fast", "examples": 8},
}


def _hardened(service: Service, folder: Path, path: Path, **job: object) -> dict[str, object]:
    """Take the way of a user from photos to a trained model, in five commands."""
    refused = service.temper("datasets", "add", str(path), "--name", "photos")
    assert refused.returncode == 1
    assert "images differ in size" in refused.stdout
    proposed = re.search(r"(--preprocessing\.image-size \d+) \(", refused.stdout.replace("\n", " "))
    assert proposed, refused.stdout
    added = service.temper("datasets", "add", str(path), "--name", "photos", *shlex.split(proposed[1]))
    assert added.returncode == 0, added.stdout + added.stderr
    (folder / "job.json").write_text(json.dumps(_JOB | job))
    without_radii = service.temper("submit", str(folder / "job.json"), "--dry-run")
    assert without_radii.returncode == 2
    said = without_radii.stdout + without_radii.stderr
    found = re.search(r'\{"linf": "[48]/255", "l2": [\d.]+, "l1": [\d.]+\}', " ".join(said.split()))
    assert found, said
    submitted = service.temper(
        *("submit", str(folder / "job.json"), "--wait", "--output", "json"),
        *("--set", f"eps={found[0]}", "--set", "preprocessing.image_size=32"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    return dict(json.loads(submitted.stdout))


def test_photos_are_refused_with_a_proposal_and_then_trained_on(service: Service, tmp_path: Path) -> None:
    path = write(photos(12, 4), tmp_path, "zip")
    job = _hardened(service, tmp_path, path, batch_size=8)
    assert job["spec"]["preprocessing"]["image_size"] == 32  # type: ignore[index]
    shown = json.loads(service.temper("datasets", "show", "photos", "--output", "json").stdout)
    assert shown["preprocessing"]["image_size"] in (128, 160, 224)
    assert (shown["train_examples"], shown["test_examples"], shown["refused"]) == (24, 8, 0)
    assert sum(each["images"] for each in shown["sizes"]["histogram"]) == 32
    service.temper("datasets", "remove", "photos")


@pytest.mark.slow
def test_six_hundred_photos_in_a_folder_become_a_model(service: Service, tmp_path: Path) -> None:
    job = _hardened(service, tmp_path, write(photos(250, 50), tmp_path, "folder") / "photos")
    assert job["status"] == "succeeded"
    service.temper("datasets", "remove", "photos")


@pytest.mark.parametrize("how", ["npz", "folder", "tar.gz", "parquet"])
def test_other_forms_are_added_with_a_drawn_test_part(how: str, service: Service, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    if how == "npz":
        arrays = {
            "x.npy": npy(numbers.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)),
            "y.npy": npy(np.arange(20) % 2),
        }
        path = zip_of(tmp_path, "own.npz", **arrays)
    elif how == "parquet":
        path = tmp_path / "own.parquet"
        path.write_bytes(parquet(numbers.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), [n % 2 for n in range(20)]))
    else:
        files = {f"{label}/{number}.jpg": photo(number) for label in ("cat", "dog") for number in range(10)}
        path = write(files, tmp_path / "own", "folder") if how == "folder" else write(files, tmp_path, how)
    add = ("datasets", "add", str(path), "--name", "own", "--preprocessing.image-size", "32")
    refused = service.temper(*add)
    assert refused.returncode == 1
    assert "--test-share 0.2" in " ".join(refused.stdout.split())
    added = service.temper(*add, "--test-share", "0.2", "--output", "json")
    assert added.returncode == 0, added.stdout + added.stderr
    shown = json.loads(added.stdout)
    assert (shown["train_examples"], shown["test_examples"], shown["test_share"]) == (16, 4, 0.2)
    assert shown["shape"] == [3, 32, 32]
    service.temper("datasets", "remove", "own")
