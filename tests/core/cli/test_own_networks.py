"""Own networks on the command line: --model, --weights for it, and the defaults that a checkpoint brings."""

import json
import sys
from pathlib import Path

import pytest
import torch

from core.__main__ import main
from core.cli.options import RunOptions
from core.cli.parser import parse_arguments
from core.cli.specs import read_spec
from core.schema.errors import BadInput
from core.schema.events import Failed, Started, read
from core.schema.spec import AnySpec, FineTuneSpec
from tests.support.packages import install

_NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.norm = nn.LayerNorm([1, 8, 8])
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        return self.head(self.norm(images).flatten(1))

def five():
    return Net(5)

def raising():
    raise RuntimeError("no disk")
"""
_QUICK = ["--epochs", "1", "--train-examples", "64", "--evaluation.protocol", "fast", "--evaluation.examples", "8"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with a module of theirs."""
    (tmp_path / "cli_networks.py").write_text(_NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_networks", raising=False)
    return tmp_path


def _spec(*arguments: object) -> AnySpec:
    options = parse_arguments([str(argument) for argument in arguments])
    assert isinstance(options, RunOptions)
    return read_spec(options)


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[object]:
    main([*map(str, arguments), "--json"])
    return [read(line) for line in capsys.readouterr().out.splitlines()]


def test_a_class_is_trained_hardened_and_measured(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    own = ["--model", "cli_networks:Net", "--dataset", "digits", *_QUICK]
    trained = _run(capsys, "train", *own, "--output", "runs/base")
    assert trained[-1].type == "finished", trained[-1]  # type: ignore[attr-defined]
    assert isinstance(trained[0], Started)
    assert trained[0].architecture == "own:cli_networks:Net"
    weights = ["--weights", "runs/base/checkpoint.safetensors"]
    # The checkpoint knows its data set and its radii.
    tuned = _run(capsys, "finetune", "--model", "cli_networks:Net", *weights, *_QUICK, "--output", "runs/tuned")
    assert tuned[-1].type == "finished", tuned[-1]  # type: ignore[attr-defined]
    assert isinstance(tuned[0], Started)
    assert (tuned[0].spec.dataset, tuned[0].spec.base_model) == ("digits", "checkpoint")  # type: ignore[union-attr]
    measured = ["evaluate", "--model", "cli_networks:Net", "--weights", "runs/tuned/checkpoint.safetensors"]
    done = _run(capsys, *measured, *_QUICK[-4:], "--output", "runs/measured")
    assert done[-1].type == "finished", done[-1]  # type: ignore[attr-defined]
    without = _run(capsys, "evaluate", *measured[3:], *_QUICK[-4:], "--output", "runs/none")
    assert isinstance(without[-1], Failed)
    assert "--model cli_networks:Net" in without[-1].hint


def test_the_same_seed_gives_a_factory_the_same_weights(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    own = ["train", "--model", "cli_networks:Net", "--dataset", "digits", *_QUICK]
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        started = _run(capsys, *own, "--seed", seed, "--output", f"runs/{name}")[0]
        assert isinstance(started, Started)
        hashes.append(started.base_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("model", "message", "field"),
    [
        ("cli_networks:raising", "cli_networks:raising raises RuntimeError: no disk", "model"),
        ("cli_networks:five", "five has 5 classes, but the data set has 10", "head"),
        ("cli_networks:Nett", "cli_networks has no Nett", "model"),
        ("torch:tensor", "torch:tensor raises TypeError", "model"),
        ("builtins:dict", "returns an object of the type dict", "model"),
    ],
)
def test_a_factory_that_does_not_work_is_one_failure(
    model: str, message: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (failed,) = _run(capsys, "finetune", "--model", model, "--dataset", "digits", *_QUICK)
    assert isinstance(failed, Failed)
    assert message in failed.message
    assert (failed.field, bool(failed.hint)) == (field, True)


def test_a_model_that_is_no_factory_ends_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--model", "cli_networks.py", "--dataset", "digits"])
    assert ended.value.code == 2
    assert "my_networks:Net" in capsys.readouterr().err


def test_weights_that_do_not_fit_the_class_name_what_differs(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    torch.save({"head.weight": torch.zeros(10, 63), "other": torch.zeros(1)}, folder / "w.pt")
    arguments = ["evaluate", "--model", "cli_networks:Net", "--weights", "w.pt", "--dataset", "digits"]
    (failed,) = _run(capsys, *arguments, "--eps", '{"linf": 0.1}')
    assert isinstance(failed, Failed)
    assert (failed.code, failed.field) == ("bad_weights", "weights")
    assert "head.weight [10, 63], the network has [10, 64]" in failed.message
    assert "missing: norm.weight" in failed.message


def test_a_network_of_a_package_is_trained_by_its_name(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder, monkeypatch)
    trained = _run(capsys, "train", "--arch", "own/tiny", "--dataset", "digits", *_QUICK, "--output", "runs/tiny")
    assert trained[-1].type == "finished", trained[-1]  # type: ignore[attr-defined]
    # It needs no --model: its package builds it.
    done = _run(capsys, "evaluate", "--weights", "runs/tiny/checkpoint.safetensors", *_QUICK[-4:], "--output", "runs/e")
    assert done[-1].type == "finished", done[-1]  # type: ignore[attr-defined]


def _checkpoint(folder: Path, header: object) -> Path:
    content = json.dumps({"__metadata__": {"temper": json.dumps(header)}}).encode()
    path = folder / "made.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    return path


_HEADER = {"blueprint": {"architecture": "digits-cnn"}, "spec": {"dataset": "digits", "eps": {"linf": 0.2, "l1": 3.0}}}


@pytest.mark.parametrize(
    ("arguments", "dataset", "eps"),
    [
        ([], "digits", {"linf": 0.2, "l2": 0.5, "l1": 3.0}),
        (["--eps.l1", "2"], "digits", {"linf": 0.2, "l2": 0.5, "l1": 2.0}),
        (["--eps", '{"linf": 0.1, "l1": 1}'], "digits", {"linf": 0.1, "l1": 1.0}),
        (["--dataset", "cifar10"], "cifar10", {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}),
    ],
)
def test_a_checkpoint_brings_its_data_set_and_its_radii(
    arguments: list[str], dataset: str, eps: dict[str, float], folder: Path
) -> None:
    spec = _spec("finetune", "--weights", _checkpoint(folder, _HEADER), *arguments)
    assert isinstance(spec, FineTuneSpec)
    assert spec.dataset == dataset
    assert spec.eps == pytest.approx(eps)


def test_a_checkpoint_on_images_of_ones_own_still_needs_their_path(folder: Path) -> None:
    made = _checkpoint(folder, {**_HEADER, "spec": {"dataset": "birds", "eps": {"linf": 0.2, "l1": 3.0}}})
    spec = _spec("finetune", "--weights", made, "--data", folder)
    assert (spec.dataset, spec.eps) == ("birds", {"linf": 0.2, "l1": 3.0})
    with pytest.raises(BadInput, match=r"data set 'birds' is not built in.*--data"):
        _spec("finetune", "--weights", made)


@pytest.mark.parametrize("header", [7, {}, {"blueprint": {"architecture": 7}}, {**_HEADER, "spec": [1]}])
def test_a_header_that_says_nothing_of_use_brings_nothing(header: object, folder: Path) -> None:
    with pytest.raises(BadInput, match="name the data set"):
        _spec("finetune", "--weights", _checkpoint(folder, header))
