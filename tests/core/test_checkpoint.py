"""Checkpoint files: whole or not at all, and never trusted."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core import checkpoint, models
from core.checkpoint import Header
from core.schema.catalog import MODELS
from core.schema.errors import BadInput, BadWeights, DiskFull, UserError
from core.schema.spec import parse
from core.training.run import fine_tune
from tests.support.unprivileged import open_folder, unprivileged


@pytest.fixture
def header() -> Header:
    spec = parse({"kind": "train", "architecture": "digits-cnn", "dataset": "digits"})
    blueprint = models.Blueprint("digits-cnn", (1, 8, 8), 10, mean=(0.3,), std=(0.25,))
    return Header(
        blueprint=blueprint, spec=spec, seed=0, step=3, base_sha256=None, data_sha256="d", versions={}, commit=None
    )


@pytest.fixture
def saved(tmp_path: Path, header: Header) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save_checkpoint(path, models.build(header.blueprint), header)
    return path


def test_a_saved_model_comes_back_with_its_normalisation(tmp_path: Path, header: Header) -> None:
    model = models.build(header.blueprint).eval()
    sha256 = checkpoint.save_checkpoint(tmp_path / "model.safetensors", model, header)
    loaded, read = checkpoint.load(tmp_path / "model.safetensors")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(images), model(images))
    assert read == header
    assert not loaded.training
    assert sha256 == checkpoint.hash_file(tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_loading_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    checkpoint.load(checkpoint.base_model_file("digits-cnn-linf", None))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    saved: Path, header: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"model\.safetensors") as caught:
        checkpoint.save_checkpoint(saved, models.build(header.blueprint), header)
    assert caught.value.retryable
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_cannot_be_written_is_named_before_the_run_starts(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    run = fine_tune(parse({"base_model": "digits-cnn-linf"}), tmp_path / "taken")
    with pytest.raises(UserError, match="taken") as caught:
        next(run)
    assert caught.value.field == "output"


def _corrupt(path: Path, what: str) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    match what:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("<html>Not found</html>")
        case "truncated":
            path.write_bytes(content[:-1000])
        case "lying header":
            path.write_bytes((2**60).to_bytes(8, "little") + content[8:])
        case "no header of ours":
            save_file({"weight": torch.zeros(2)}, path)
        case "other network":
            meta = json.loads(content[8 : 8 + size])
            inner = json.loads(meta["__metadata__"]["temper"])
            inner["blueprint"]["classes"] = 7
            save_file(
                {name: torch.zeros(entry["shape"]) for name, entry in meta.items() if name != "__metadata__"},
                path,
                {"temper": json.dumps(inner)},
            )
        case "unreadable header":
            save_file({"weight": torch.zeros(2)}, path, {"temper": "{not json"})


@pytest.mark.parametrize(
    "what",
    ["empty", "text", "truncated", "lying header", "no header of ours", "other network", "unreadable header"],
)
def test_a_file_that_is_no_checkpoint_is_refused_with_a_remedy(saved: Path, what: str) -> None:
    _corrupt(saved, what)
    with pytest.raises(BadWeights) as caught:
        checkpoint.load(saved)
    assert caught.value.field == "base_model"
    assert caught.value.hint
    assert saved.name in caught.value.message


def test_weights_of_another_network_are_reported_name_by_name(saved: Path) -> None:
    _corrupt(saved, "other network")
    with pytest.raises(BadWeights, match=r"classifier.bias \[10\], the network has \[7\]"):
        checkpoint.load(saved)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return os.system, (f"touch {self.path}",)  # type: ignore[return-value]


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(BadWeights):
        checkpoint.load(path)
    assert not canary.exists()


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, header: Header) -> None:
    model = models.build(header.blueprint)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    checkpoint.save_checkpoint(tmp_path / "model.safetensors", model, header)
    with pytest.raises(BadWeights, match="NaN or infinite"):
        checkpoint.load(tmp_path / "model.safetensors")


def test_a_header_that_is_nested_without_end_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {checkpoint.KEY: "[" * 5000 + "]" * 5000})
    with pytest.raises(BadWeights, match="cannot be read"):
        checkpoint.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="no file"):
        checkpoint.load(tmp_path / "nowhere.safetensors")


def test_shipped_weights_are_those_of_the_catalogue_and_small() -> None:
    for entry in MODELS.values():
        path = checkpoint.base_model_file(entry.name, None)
        assert path.stat().st_size < 2 * 2**20
        _, header = checkpoint.load(path)
        assert header.blueprint.architecture == entry.architecture
        # CIFAR-10's images as JPEGs are still CIFAR-10's.
        assert header.spec.dataset.removesuffix("-jpeg") == entry.dataset
        assert header.spec.eps[entry.norm] == entry.eps
        assert header.reports is not None
        assert path.with_suffix(".json").exists(), "the command that made it is shipped beside it"


def test_an_unknown_base_model_is_answered_with_a_guess() -> None:
    with pytest.raises(BadInput) as caught:
        checkpoint.base_model_file("digits-cnn-l-inf", None)
    assert "did you mean 'digits-cnn-linf'?" in caught.value.hint


@pytest.mark.parametrize("read", [checkpoint.read_header, checkpoint.load, checkpoint.hash_file])
def test_a_file_that_may_not_be_read_is_told_from_one_that_is_not_there(read):
    with open_folder() as folder:
        path = folder / "mine.safetensors"
        path.write_bytes(b"weights")
        path.chmod(0)
        with unprivileged(), pytest.raises(BadWeights, match=r"cannot read .*: Permission denied") as refused:
            read(path)
        assert "chmod a+r" in str(refused.value.hint)
        with unprivileged(), pytest.raises(BadWeights, match=r"there is no file|No such file"):
            read(folder / "other.safetensors")
