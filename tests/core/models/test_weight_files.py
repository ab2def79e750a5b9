"""Third-party weight files: every layout of the field gives the very network, and nothing else gets in."""

import argparse
import collections
import datetime
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.models import Blueprint, build, weight_matching
from core.models.weight_files import read
from core.models.weight_matching import convert
from core.schema.catalog import ARCHITECTURES, ArchitectureEntry, find_architecture
from core.schema.errors import BadWeights

Weights = dict[str, Tensor]
_MEAN, _STD = (0.3,), (0.25,)
_DIGITS = Blueprint("digits-cnn", (1, 8, 8), 10)


def _prefixed(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def _statistics(mean: str, std: str) -> Weights:
    return {mean: torch.tensor(_MEAN).view(1, -1, 1, 1), std: torch.tensor(_STD).view(1, -1, 1, 1)}


def _madry(weights: Weights) -> dict[str, Any]:
    """As the robustness library saves its AttackerModel inside DataParallel, after dill has gone from the file."""
    inner = {
        **_statistics("normalizer.new_mean", "normalizer.new_std"),
        **_prefixed("model.", weights),
        **_statistics("attacker.normalize.new_mean", "attacker.normalize.new_std"),
        **_prefixed("attacker.model.", weights),
    }
    return {"epoch": 110, "model": _prefixed("module.", inner), "optimizer": {"state": {}}}


def _zeros(weights: Mapping[str, Tensor]) -> Weights:
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def _averaged_model(weights: Weights) -> Weights:
    model = build(_DIGITS)
    model.load_state_dict(weights)
    return dict(torch.optim.swa_utils.AveragedModel(model).state_dict())


def _whole(weights: Weights) -> nn.Module:
    """The network itself, as torch.save(model) writes it."""
    model = build(_DIGITS)
    model.load_state_dict(weights)
    return model


_LAYOUTS: dict[str, Any] = {
    "bare": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3},
    "model": lambda weights: {"model": weights, "optimizer": {"state": {}}, "best": 0.5},
    "net": lambda weights: {"net": weights, "acc": 87.0},
    "nested": lambda weights: {"model": {"state_dict": weights}, "epoch": 3},
    "DataParallel": lambda weights: {"state_dict": _prefixed("module.", weights)},
    "wrapped twice": lambda weights: _prefixed("module.model.", weights),
    "compiled": lambda weights: _prefixed("_orig_mod.module.", weights),
    "counters missing": lambda weights: {
        name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")
    },
    "double precision": lambda weights: {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    },
    "averaged beside raw": lambda weights: {
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        "state_dict_ema": weights,
    },
    **{
        f"averaged under {key}": lambda weights, key=key: {"model": _zeros(weights), key: weights, "optimizer": {}}
        for key in ("ema", "ema_model", "model_ema", "modelEMA", "averaged", "swa_state_dict", "EMA.weights")
    },
    "AveragedModel": lambda weights: _averaged_model(weights),
    "AveragedModel under any key": lambda weights: {"state_dict": _zeros(weights), "teacher": _averaged_model(weights)},
    "averaged in a wrapper": lambda weights: {"model": _zeros(weights), "ema": {"decay": 0.9, "shadow": weights}},
    "averaged below raw": lambda weights: {"model": {"net": _zeros(weights), "net_ema": weights}},
    "averaged among the names": lambda weights: {
        "state_dict": {**_prefixed("model.", _zeros(weights)), **_prefixed("model_ema.module.", weights)}
    },
    "averaged among the names, with counters": lambda weights: {
        **_prefixed("online_model.", _zeros(weights)),
        **_prefixed("ema_model.", weights),
        "initted": torch.tensor(True),
        "step": torch.tensor(3),
    },
    "the optimiser averaged": lambda weights: {"model": weights, "ema_optimizer": {"fc.weight": torch.ones(2, 2)}},
    "profiled": lambda weights: {
        **weights,
        "total_ops": torch.zeros(1, dtype=torch.float64),
        **{f"{name.rpartition('.')[0]}.total_params": torch.zeros(1) for name in weights},
    },
    "any prefix": lambda weights: _prefixed("backbone.", weights),
    "any prefix in wrappers": lambda weights: {"state_dict": _prefixed("module.my_net.encoder.module.", weights)},
    "any prefix, normalised before": lambda weights: _prefixed(
        "classifier.", {**_statistics("normalize.mean", "normalize.std"), **_prefixed("body.", weights)}
    ),
    "any prefix, normalised inside": lambda weights: _prefixed("wrapped.", {**weights, **_statistics("mu", "sigma")}),
    "any key": lambda weights: {"my_weights": weights, "epoch": 3, "optimizer": {"fc.weight": torch.ones(2, 2)}},
    "a network whole": lambda weights: _whole(weights),
    "a network whole, averaged": lambda weights: {"model": _whole(_zeros(weights)), "ema": _whole(weights)},
    "normalised inside": lambda weights: {**weights, **_statistics("mu", "sigma")},
    "normalised before": lambda weights: {
        **_statistics("normalize.mean", "normalize.std"),
        **_prefixed("model.", weights),
    },
    "normalised in a Sequential": lambda weights: _prefixed(
        "module.", {**_statistics("0.mean", "0.std"), **_prefixed("1.", weights)}
    ),
    "MadryLab": _madry,
}


@pytest.mark.parametrize("layout", list(_LAYOUTS))
def test_every_layout_gives_the_logits_of_the_network_it_was_written_from(
    layout: str, network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(_LAYOUTS[layout](network.state_dict()), path)
    found = read(path)
    model, _ = convert(found, replace(_DIGITS, mean=found.mean, std=found.std), path.name)
    images = torch.rand(4, 1, 8, 8)
    expected = network((images - 0.3) / 0.25 if "normalised" in layout or layout == "MadryLab" else images)
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_raw_safetensors_are_read_too(prefix: str, network: nn.Module, tmp_path: Path) -> None:
    save_file(_prefixed(prefix, network.state_dict()), tmp_path / "weights.safetensors")
    model, left_out = convert(read(tmp_path / "weights.safetensors"), _DIGITS, "weights")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images), network(images))
    assert left_out == ()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wide-resnet-10-1", (3, 32, 32)),
        ("dm-wide-resnet-10-1", (3, 28, 28)),
        ("preact-resnet-18", (3, 32, 32)),
        ("timm/test_vit", (3, 160, 160)),
        pytest.param("resnet-50", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("imagenet-resnet-50-gelu", (3, 64, 64), marks=pytest.mark.slow),
        pytest.param("deit-s", (3, 224, 224), marks=pytest.mark.slow),
        pytest.param("xcit-s12", (3, 224, 224), marks=pytest.mark.slow),
    ],
)
def test_every_family_comes_back_from_a_file_in_the_fields_conventions(
    name: str, shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_architecture(name) is None:  # a small member of a family whose own take hundreds of megabytes
        entry = ArchitectureEntry(name=name, description="small", learning_rate=0.1)
        monkeypatch.setitem(ARCHITECTURES, name, entry)  # type: ignore[arg-type]
    original = build(Blueprint(name, shape, 6)).eval()
    unused = _prefixed("sub_block1.", {"layer.0.bn1.weight": torch.ones(4)}) if name.startswith("wide") else {}
    weights = {**original.state_dict(), **unused, "mu": torch.tensor([0.5] * 3), "sigma": torch.tensor([0.2] * 3)}
    torch.save({"state_dict": _prefixed("module.", weights)}, tmp_path / "weights.pt")
    found = read(tmp_path / "weights.pt")
    assert weight_matching.count_classes(found.weights, name, shape) == 6
    model, left_out = convert(found, Blueprint(name, shape, 6, mean=found.mean, std=found.std), "weights.pt")
    images = torch.rand(2, *shape)
    border = (2, 2, 2, 2) if shape[1] == 28 else (0, 0, 0, 0)
    expected = original((nn.functional.pad(images, border) - 0.5) / 0.2)
    torch.testing.assert_close(model(images), expected)
    assert left_out == tuple(unused)


def test_prefixes_are_cut_at_the_start_and_nowhere_else(tmp_path: Path) -> None:
    names = ["module.model.conv.weight", "module.submodule.model.bias", "encoder.module.scale"]
    torch.save({name: torch.full((1,), float(index)) for index, name in enumerate(names)}, tmp_path / "w.pt")
    assert set(read(tmp_path / "w.pt").weights) == {"conv.weight", "submodule.model.bias", "encoder.module.scale"}


def test_two_networks_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    torch.save({"model.weight": torch.zeros(2), "weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(BadWeights, match="two different tensors"):
        read(tmp_path / "w.pt")


def test_the_key_of_the_weights_can_be_given(tmp_path: Path) -> None:
    torch.save({"runs": {"best": {"w": torch.ones(1)}, "last": {"w": torch.zeros(1)}}}, tmp_path / "w.pt")
    assert read(tmp_path / "w.pt", key="runs.best").weights["w"].item() == 1
    with pytest.raises(BadWeights, match="no weights") as caught:
        read(tmp_path / "w.pt")
    assert "it has: runs" in caught.value.hint
    with pytest.raises(BadWeights, match="has no 'worst'"):
        read(tmp_path / "w.pt", key="worst")


def _pair() -> tuple[Weights, Weights]:
    return {"fc.weight": torch.ones(2, 2)}, {"fc.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("layout", "taken", "others"),
    [
        (lambda one, two: {"state_dict": two, "ema": one}, "ema", ("state_dict",)),
        (lambda one, two: {"model": one, "net": two}, "model", ("net",)),
        (lambda one, two: {"model": one, "discriminator": two}, "model", ("discriminator",)),
        (lambda one, two: {"runs": {"best": two}, "model": {"state_dict": one}}, "model.state_dict", ("runs.best",)),
        (
            lambda one, two: {"state_dict": _prefixed("net.", two) | _prefixed("net_ema.", one)},
            "state_dict.net_ema",
            ("state_dict.net",),
        ),
        (lambda one, two: _prefixed("module.swa.", one) | _prefixed("module.raw.", two), "module.swa", ("module.raw",)),
        (lambda one, two: {"model": one, "state_dict": two, "optimizer": {"m": two}}, "state_dict", ("model",)),
    ],
)
def test_where_a_file_has_two_networks_both_can_be_taken(
    layout: Any, taken: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    one, two = _pair()
    if taken == "state_dict":
        one, two = two, one
    path = tmp_path / "w.pt"
    torch.save(layout(one, two), path)
    found = read(path)
    assert (found.key, found.others) == (taken, others)
    expected = {"state_dict": two}.get(taken, one)
    assert torch.equal(found.weights["fc.weight"], expected["fc.weight"])
    again = read(path, key=taken)
    assert (again.key, again.others) == (taken, others)
    other = read(path, key=others[0])
    assert other.key == others[0]
    assert not torch.equal(other.weights["fc.weight"], expected["fc.weight"])
    assert taken in other.others


def test_weights_that_are_named_twice_are_one_network(tmp_path: Path) -> None:
    one, _ = _pair()
    torch.save({"state_dict": one, "model": one, "net": dict(one)}, tmp_path / "w.pt")
    assert read(tmp_path / "w.pt").others == ()


def test_a_key_may_have_dots(tmp_path: Path) -> None:
    one, two = _pair()
    torch.save({"model.v1": {"weights.best": one, "weights.last": two}}, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt", key="model.v1.weights.last")
    assert torch.equal(found.weights["fc.weight"], two["fc.weight"])


def test_names_in_a_message_are_short_and_printable(tmp_path: Path) -> None:
    torch.save({"\x1b[31mred\n" + "x" * 500: [1]}, tmp_path / "w.pt")
    with pytest.raises(BadWeights) as caught:
        read(tmp_path / "w.pt")
    assert caught.value.hint.startswith("it has: ?[31mred?xxx")
    assert len(caught.value.hint) < 200


def test_arrays_of_numpy_are_told_how_to_become_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"fc.weight": np.ones((2, 2))}}))
    with pytest.raises(BadWeights, match="no weights") as caught:
        read(tmp_path / "w.pkl")
    assert "torch.from_numpy" in caught.value.hint


def test_a_mapping_that_holds_itself_is_no_endless_search(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "w.pt")
    with pytest.raises(BadWeights, match="no weights were found"):
        read(tmp_path / "w.pt")
    endless["model"] = {"w": torch.ones(1)}
    torch.save(endless, tmp_path / "w.pt")
    assert read(tmp_path / "w.pt").key == "model"


_NOT_PLAIN: dict[str, Callable[[], Tensor]] = {
    "is sparse": lambda: torch.eye(3).to_sparse(),
    "has only a shape": lambda: torch.empty(3, device="meta"),
    "is of type complex64": lambda: torch.ones(3, dtype=torch.complex64),
    "is of type float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("said", list(_NOT_PLAIN))
def test_tensors_that_are_not_plain_numbers_are_refused_by_name(said: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2), "fc.bias": _NOT_PLAIN[said]()}, tmp_path / "w.pt")
    with pytest.raises(BadWeights, match=rf"fc\.bias in w\.pt .*{said}") as caught:
        read(tmp_path / "w.pt")
    assert "dense floating-point" in caught.value.hint


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.bias": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "w.pt")
    with pytest.raises(BadWeights, match="is quantised"):
        read(tmp_path / "w.pt")


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_torch_file_that_runs_a_command_is_refused_and_not_executed(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pt"
    torch.save({"state_dict": {"w": torch.ones(1)}, "extra": _Canary(canary)}, path)
    with pytest.raises(BadWeights, match=r"tensors alone: it calls posix\.system") as caught:
        read(path)
    assert "torch.save(model.state_dict()" in caught.value.hint
    assert not canary.exists()


_BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, path=Path("/data")),
    "numpy": [np.float64(87.3), np.arange(5), np.dtype("f4"), np.random.default_rng(0)],
    "network": nn.Linear(2, 2),
    "torch": [torch.Size([2]), torch.float32, torch.device("cuda:0"), torch.Generator, torch.strided],
    "code of ours": Blueprint("digits-cnn", (1, 8, 8), 10),
    "collections": [collections.Counter("ab"), collections.defaultdict(list, a=[1]), collections.deque([1])],
    "dates": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "optimiser": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1).state_dict(),
    "sets": [{1, 2}, frozenset({3}), 1j, slice(2)],
    "a class and a function": [Blueprint, build],
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("beside", list(_BESIDE))
def test_other_values_beside_the_tensors_do_not_stop_an_import(beside: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    content = {"extra": _BESIDE[beside], "state_dict": {"w": torch.ones(2, 2), "extra": _BESIDE[beside]}}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    found = read(path)
    assert (found.key, found.weights.keys()) == ("state_dict", {"w"})
    assert torch.equal(found.weights["w"], torch.ones(2, 2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Google Drive: too many downloads</title>", "is a web page"),
        (b"PK\x03\x04 and nothing more", "cannot be read"),
        (b"neither zip nor pickle", "is not a torch file"),
        (b"hello, these are no weights", "damaged, cut off, or no weights file"),
    ],
)
def test_a_file_that_holds_no_weights_is_named_with_a_remedy(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(BadWeights, match=said) as caught:
        read(path)
    assert "weights.pt" in caught.value.message
    assert caught.value.hint


def test_a_truncated_torch_file_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(
        BadWeights, match=r"weights\.pt cannot be read as a torch file: it is damaged, cut off"
    ) as caught:
        read(path)
    assert "download it again" in caught.value.hint


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="No such file"):
        read(tmp_path / "nowhere.pt")
