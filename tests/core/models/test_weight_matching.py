"""Third-party weights and the networks that they fit: names, shapes, classes, normalisation."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.models import Blueprint, build, weight_matching
from core.models.normalisation import check_normalisation
from core.models.weight_files import ThirdPartyWeights, read
from core.models.weight_matching import convert
from core.schema.catalog import DATASETS
from core.schema.errors import BadInput, BadWeights, DoesNotFit
from core.schema.model_zoo import PUBLISHED, find_published

_DIGITS = Blueprint("digits-cnn", (1, 8, 8), 10)


def test_a_robust_xcit_is_read_by_the_names_that_timm_had_when_it_was_published() -> None:
    with torch.device("meta"):
        network = build(Blueprint("xcit-s12", (3, 224, 224), 10))
    weights = network.state_dict()
    published = {name.replace("pos_embed.", "pos_embeder."): tensor for name, tensor in weights.items()}
    assert published.keys() != weights.keys()
    assert not weight_matching.compare(published, network).whole
    assert weight_matching.compare(weight_matching.with_names_of(network, published), network).whole


def test_a_prefix_that_is_the_networks_own_is_not_taken_for_a_wrappers(tmp_path: Path) -> None:
    shape = (3, 224, 224)
    with torch.device("meta"):
        network = build(Blueprint("timm/volo_d1_224", shape, 10))
    assert any(name.startswith("network.") for name in network.state_dict())
    # Of one number each, seen many times: the shapes are what is asked for.
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt").weights
    assert weight_matching.count_classes(found, "timm/volo_d1_224", shape) == 10
    assert weight_matching.compare(weight_matching.with_names_of(network, found), network).whole


def test_whole_numbers_are_taken_for_counters_and_refused_for_weights(network: nn.Module) -> None:
    weights = {**network.state_dict(), "classifier.bias": torch.ones(10, dtype=torch.int32)}
    assert weights["features.0.1.num_batches_tracked"].dtype == torch.int64
    with pytest.raises(BadWeights, match=r"classifier\.bias in w\.pt has integers of type int32"):
        convert(ThirdPartyWeights(weights), _DIGITS, "w.pt")


def test_weights_that_do_not_fit_are_reported_name_by_name_with_the_network_they_fit() -> None:
    weights = dict(build(Blueprint("preact-resnet-8", (3, 32, 32), 10)).state_dict())
    with pytest.raises(BadWeights) as caught:
        convert(ThirdPartyWeights(weights), Blueprint("preact-resnet-18", (3, 32, 32), 10), "w.pt")
    assert "missing: layer1.0.bn1.weight [64]" in caught.value.message
    assert "unexpected: layers.0.bn1.weight [16]" in caught.value.message
    assert "another shape: conv1.weight [16, 3, 3, 3], the network has [64, 3, 3, 3]" in caught.value.message
    assert "they fit preact-resnet-8" in caught.value.hint


def test_weights_that_nearly_fit_another_network_are_told_which() -> None:
    weights = dict(build(Blueprint("preact-resnet-8", (3, 32, 32), 10)).state_dict())
    del weights["linear.bias"]
    with pytest.raises(BadWeights) as caught:
        convert(ThirdPartyWeights(weights), Blueprint("resnet-18", (3, 32, 32), 10), "w.pt")
    assert caught.value.hint.startswith("preact-resnet-8 comes closest")


def test_a_file_that_lacks_a_part_of_its_own_network_is_told_so(network: nn.Module) -> None:
    weights = {name: tensor for name, tensor in network.state_dict().items() if name != "classifier.bias"}
    with pytest.raises(BadWeights, match=r"1 missing\n  missing: classifier\.bias") as caught:
        convert(ThirdPartyWeights(weights), _DIGITS, "w.pt")
    assert "incomplete" in caught.value.hint


def test_another_number_of_classes_is_recognised_as_that(network: nn.Module) -> None:
    with pytest.raises(BadWeights, match=r"classifier.bias \[10\], the network has \[100\]") as caught:
        convert(ThirdPartyWeights(network.state_dict()), Blueprint("digits-cnn", (1, 8, 8), 100), "w.pt")
    assert "add --classes 10" in caught.value.hint


def test_weights_that_are_not_numbers_are_refused(network: nn.Module) -> None:
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights["features.1.1.running_var"][0] = float("nan")
    with pytest.raises(BadWeights, match="NaN, infinite"):
        convert(ThirdPartyWeights(weights), _DIGITS, "w.pt")


def test_weights_that_are_numbers_in_64_bits_alone_are_refused(network: nn.Module) -> None:
    weights = {name: tensor.double() for name, tensor in network.state_dict().items()}
    weights["classifier.bias"][0] = 1e300
    with pytest.raises(BadWeights, match="too large for 32 bits"):
        convert(ThirdPartyWeights(weights), _DIGITS, "w.pt")


@pytest.mark.parametrize(
    ("mean", "std"), [(float("nan"), 1.0), (float("inf"), 1.0), (1e300, 1.0), (0.0, float("inf")), (0.0, 1e-45)]
)
def test_a_normalisation_that_makes_no_numbers_is_refused(mean: float, std: float) -> None:
    with pytest.raises(BadInput, match="do not normalise"):
        check_normalisation(1, (mean,), (std,))
    check_normalisation(1, (0.5,), (0.25,))


def test_weights_of_a_single_class_are_refused(network: nn.Module) -> None:
    weights = {
        name: tensor[:1] if name.startswith("classifier") else tensor for name, tensor in network.state_dict().items()
    }
    assert weight_matching.count_classes(weights, "digits-cnn", (1, 8, 8)) == 1
    with pytest.raises(DoesNotFit, match="at least 2 classes"):
        convert(ThirdPartyWeights(weights), Blueprint("digits-cnn", (1, 8, 8), 1), "w.pt")


@cache
def _try_out(blueprint: Blueprint) -> tuple[int, ...]:
    with torch.device("meta"):
        return tuple(build(blueprint).eval()(torch.rand(1, *blueprint.shape, device="meta")).shape)


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=lambda entry: entry.name)
def test_published_weights_name_a_network_that_can_be_built_for_them(entry: Any) -> None:
    name, threat, _ = entry.name.split("/")
    assert (entry.dataset, entry.norm) == (name, None if "Standard" in entry.name else threat.lower())
    assert (entry.norm is None) == (entry.eps is None)
    dataset = DATASETS[entry.dataset]
    assert len(entry.mean) == len(entry.std) in (0, 3)
    # Built once for all that share it: a mean of 0 stands for any.
    mean, std = ((0.0,) * len(entry.mean), (1.0,) * len(entry.std))
    assert _try_out(Blueprint(entry.architecture, dataset.shape, dataset.classes, mean, std)) == (1, dataset.classes)


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=lambda entry: entry.name)
def test_where_published_weights_lie_is_a_file_and_no_page_that_names_it(entry: Any) -> None:
    assert re.search(r"/file/d/\w+|\.(pt|pth|pth\.tar)(\?dl=0)?$", entry.source)


def test_a_published_name_is_found_by_its_last_part_where_that_is_enough() -> None:
    assert [entry.name for entry in find_published("Carmon2019Unlabeled")] == ["cifar10/Linf/Carmon2019Unlabeled"]
    assert len(find_published("Engstrom2019Robustness")) == 4
    assert len(find_published("imagenet/Linf/Engstrom2019Robustness")) == 1
    assert find_published("Nobody2030Nothing") == []
