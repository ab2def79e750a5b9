"""The recipe of a spec: what it resolves to for each kind of network, and what it refuses."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from core.schema.catalog import ARCHITECTURES, DATASETS, MODELS, find_architecture
from core.schema.spec import FineTuneSpec, TrainSpec, parse, with_defaults_for
from core.schema.spec_warnings import spec_warnings
from core.schema.validation import field_errors

_SMALLEST = {"base_model": "digits-cnn-linf"}
_ALL_ON = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 0.2,
    "clip_grad_norm": 1.0,
    "label_smoothing": 0.1,
    "average": {"decay": 0.9},
    "deliver": "best",
    "awp": {"strength": 0.01, "start_epoch": 1},
}


def _trained(body: dict[str, Any]) -> FineTuneSpec | TrainSpec:
    spec = parse(body)
    assert isinstance(spec, FineTuneSpec | TrainSpec)
    return spec


def _errors(body: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        parse(body)
    return {error.pointer: error.detail for error in field_errors(caught.value)}


def test_by_default_the_recipe_is_that_of_the_paper() -> None:
    spec = _trained(_SMALLEST)
    assert (spec.optimizer, spec.schedule, spec.warmup, spec.momentum) == ("sgd", "piecewise", 0, 0.9)
    assert (spec.clip_grad_norm, spec.label_smoothing, spec.average, spec.awp) == (None, 0, None, None)
    assert spec.deliver == "last"


@pytest.mark.parametrize("architecture", ["deit-s", "xcit-s12", "timm/vit_small_patch16_224", "timm/convnext_tiny"])
def test_transformers_and_networks_like_them_get_adamw_with_a_warm_up(architecture: str) -> None:
    train = _trained({"kind": "train", "architecture": architecture, "dataset": "imagenet"})
    own = _trained(with_defaults_for({"base_model": "mine", "dataset": "imagenet"}, architecture))
    for spec in (train, own):
        assert (spec.optimizer, spec.learning_rate, spec.schedule, spec.warmup) == ("adamw", 1e-4, "cosine", 0.1)
        assert (spec.momentum, spec.weight_decay) == (None, 0.05)


@pytest.mark.parametrize(
    ("architecture", "rate"), [("timm/resnet50", 0.005), ("timm/efficientnet_b0", 0.005), ("resnet-18", 0.01)]
)
def test_convolutional_networks_get_sgd(architecture: str, rate: float) -> None:
    own = _trained(with_defaults_for({"base_model": "mine", "dataset": "imagenet"}, architecture))
    assert (own.optimizer, own.learning_rate, own.schedule, own.weight_decay) == ("sgd", rate, "piecewise", 1e-4)
    train = _trained({"kind": "train", "architecture": architecture, "dataset": "cifar10"})
    assert (train.schedule, train.warmup) == ("one-cycle", 0)


def test_the_defaults_follow_an_optimiser_that_the_spec_names() -> None:
    adamw = _trained({**_SMALLEST, "optimizer": "adamw"})
    assert (adamw.learning_rate, adamw.schedule, adamw.momentum, adamw.weight_decay) == (1e-4, "cosine", None, 0.05)
    assert _trained({**_SMALLEST, "optimizer": "adamw", "schedule": "one-cycle"}).warmup == 0
    body = {"base_model": "mine", "dataset": "imagenet", "optimizer": "sgd"}
    sgd = _trained(with_defaults_for(body, "xcit-s12"))
    assert (sgd.optimizer, sgd.learning_rate, sgd.schedule, sgd.momentum) == ("sgd", 0.01, "piecewise", 0.9)
    chosen = _trained(with_defaults_for({**body, "learning_rate": 0.3}, "xcit-s12"))
    assert chosen.learning_rate == 0.3
    assert "/optimizer" in _errors(with_defaults_for({**body, "optimizer": "adam"}, "xcit-s12"))


def test_a_recipe_with_everything_in_it_reads_back_as_itself() -> None:
    spec = _trained({**_SMALLEST, **_ALL_ON})
    assert parse(json.loads(spec.model_dump_json())) == spec
    assert not {warning.code for warning in spec_warnings(spec)} - {"l2_not_covered"}


def test_an_average_and_a_perturbation_have_defaults() -> None:
    spec = _trained({**_SMALLEST, "average": {}, "awp": {}})
    assert spec.average is not None
    assert spec.awp is not None
    assert (spec.average.decay, spec.awp.strength, spec.awp.start_epoch) == (0.995, 0.005, 0)


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_no_default_of_a_network_is_warned_about(dataset: str) -> None:
    for architecture in [*ARCHITECTURES, "timm/resnet50", "timm/vit_small_patch16_224"]:
        body = {"kind": "train", "architecture": architecture, "dataset": dataset, "method": "sat"}
        own = with_defaults_for({"base_model": "mine", "dataset": dataset, "method": "sat"}, architecture)
        assert not spec_warnings(parse(body))
        assert not spec_warnings(parse(own))


@pytest.mark.parametrize("base_model", list(MODELS))
def test_a_shipped_base_gets_the_recipe_of_its_network(base_model: str) -> None:
    entry = find_architecture(MODELS[base_model].architecture)
    assert entry is not None
    spec = _trained({"base_model": base_model})
    assert (spec.optimizer, spec.learning_rate) == (entry.optimizer, entry.learning_rate)


def test_an_average_without_held_out_images_comes_with_a_warning() -> None:
    body = {**_SMALLEST, "method": "sat", "average": {}}
    assert spec_warnings(parse(body)) == ()
    (warning,) = spec_warnings(parse({**body, "held_out": 0}))
    assert warning.code == "average_not_compared"
    assert "held_out" in warning.remedy


@pytest.mark.parametrize(
    ("change", "pointer", "remedy"),
    [
        ({"optimizer": "adam"}, "/optimizer", "did you mean 'adamw'?"),
        ({"schedule": "cosin"}, "/schedule", "did you mean 'cosine'?"),
        ({"warmup": -0.1}, "/warmup", "at least 0"),
        ({"schedule": "cosine", "warmup": 5}, "/warmup", "for 2 epochs of 20, write 0.1"),
        ({"schedule": "cosine", "warmup": 1.0}, "/warmup", "must be less than 1"),
        ({"schedule": "one-cycle", "warmup": 0.1}, "/warmup", "leave warmup out"),
        ({"schedule": "piecewise", "warmup": 0.4}, "/warmup", "0.33 or less"),
        ({"optimizer": "adamw", "momentum": 0.9}, "/momentum", "leave it out, or set optimizer to sgd"),
        ({"momentum": None}, "/momentum", "leave it out for 0.9"),
        ({"clip_grad_norm": 0}, "/clip_grad_norm", "greater than 0"),
        ({"clip_grad_norm": 1e9}, "/clip_grad_norm", "at most 1000"),
        ({"label_smoothing": 1.0}, "/label_smoothing", "less than 1"),
        ({"label_smoothing": -0.1}, "/label_smoothing", "at least 0"),
        ({"average": True}, "/average", '{"decay": 0.995}'),
        ({"average": {"decay": 1.0}}, "/average/decay", "less than 1"),
        ({"average": {"decay": 0}}, "/average/decay", "greater than 0"),
        ({"average": {"dekay": 0.9}}, "/average/dekay", "did you mean 'decay'?"),
        ({"deliver": "first"}, "/deliver", "'last' or 'best'"),
        ({"deliver": "best", "held_out": 0}, "/deliver", "set held_out to 1 or more"),
        ({"awp": 0.005}, "/awp", '{"strength": 0.005}'),
        ({"awp": {"strength": 0}}, "/awp/strength", "greater than 0"),
        ({"awp": {"strength": 1.5}}, "/awp/strength", "at most 1"),
        ({"awp": {"start_epoch": 3}}, "/awp/start_epoch", "set awp.start_epoch to 2 or less"),
        ({"awp": {"start_epoch": -1}}, "/awp/start_epoch", "at least 0"),
        ({"strength": 0.1}, "/strength", "did you mean 'awp.strength'?"),
        ({"kind": "evaluate", "average": {}}, "/average", "a run of kind evaluate has no average"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(change: dict[str, Any], pointer: str, remedy: str) -> None:
    assert remedy in _errors({**_SMALLEST, **change})[pointer]
