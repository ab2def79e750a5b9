"""What a spec resolves to, and what it refuses."""

import json
from math import sqrt
from typing import Any

import pytest
from pydantic import ValidationError

from core.schema.catalog import ARCHITECTURES, DATASETS, METHODS, MODELS, NORMS
from core.schema.method import Method
from core.schema.radius import check_radius
from core.schema.spec import SPECS, EvaluateSpec, FineTuneSpec, TrainSpec, parse
from core.schema.spec_warnings import spec_warnings
from core.schema.validation import field_errors

_SMALLEST = {"base_model": "digits-cnn-linf"}
_SHARED = {"name", "norms", "steps"}
_OFF = {"clip_grad_norm", "average", "awp", "test_share", "head_learning_rate"}
"""Parts of a recipe that a spec has only where it asks for them."""


def _errors(body: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        parse(body)
    return {error.pointer: error.detail for error in field_errors(caught.value)}


def test_a_bad_base_model_is_told_once_and_without_its_consequences() -> None:
    assert set(_errors({"base_modell": "digits-cnn-linf"})) == {"/base_model", "/base_modell"}
    assert set(_errors({"base_model": "../.."})) == {"/base_model"}


def test_a_flood_of_errors_is_cut_and_long_names_are_shortened() -> None:
    with pytest.raises(ValidationError) as caught:
        parse({**_SMALLEST, **{f"{number}{'x' * 1000}": 1 for number in range(1000)}})
    errors = field_errors(caught.value)
    assert len(errors) == 20
    assert all(len(error.pointer) < 100 for error in errors)
    assert sum(len(error.detail) for error in errors) < 10_000


def test_a_method_may_be_a_name_in_the_schema_too() -> None:
    fields = FineTuneSpec.model_json_schema()["properties"]
    assert {"type": "string"} in fields["method"]["anyOf"]


def test_the_smallest_job_is_resolved_in_full_from_the_catalogue() -> None:
    spec = parse(_SMALLEST)
    assert isinstance(spec, FineTuneSpec)
    entry = DATASETS["digits"]
    assert spec.dataset == "digits"
    assert spec.eps == entry.eps
    assert (spec.epochs, spec.batch_size, spec.augmentation) == (entry.epochs, entry.batch_size, entry.augmentation)
    assert spec.learning_rate == ARCHITECTURES["digits-cnn"].learning_rate
    assert spec.method.name == "e-at"
    assert spec.method.norms == ("linf", "l1")
    assert spec.method.steps == {"linf": 10, "l1": 10}
    assert spec.schedule == "piecewise"
    assert None not in spec.model_dump(exclude={"train_examples", "extra_dataset", "webhook", *_OFF}).values()


def test_cifar10_gets_the_recipe_of_the_paper() -> None:
    spec = parse({"base_model": "mine", "dataset": "cifar10"})
    assert isinstance(spec, FineTuneSpec)
    assert spec.eps == {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
    assert (spec.epochs, spec.batch_size, spec.momentum, spec.weight_decay) == (3, 128, 0.9, 5e-4)
    assert spec.learning_rate == 0.01
    train = parse({"kind": "train", "architecture": "preact-resnet-18", "dataset": "cifar10"})
    assert isinstance(train, TrainSpec)
    assert train.learning_rate == 0.05


def test_imagenet_gets_the_recipe_of_the_paper() -> None:
    spec = parse({"base_model": "mine", "dataset": "imagenet", "method": {"name": "sat"}})
    assert isinstance(spec, FineTuneSpec)
    assert spec.eps == {"linf": 4 / 255, "l2": 2.0, "l1": 255.0}
    assert (spec.epochs, spec.batch_size, spec.weight_decay) == (1, 128, 1e-4)
    assert spec.method.steps == {"linf": 5, "l2": 5, "l1": 15}
    assert spec.augmentation == "resized-crop-flip"
    assert not spec_warnings(parse({"base_model": "mine", "dataset": "imagenet"})), "E-AT covers l2 at these radii"


def test_steps_that_a_job_gives_are_kept_on_every_data_set() -> None:
    spec = parse({"base_model": "mine", "dataset": "imagenet", "method": {"name": "e-at", "steps": 10}})
    assert isinstance(spec, FineTuneSpec)
    assert spec.method.steps == {"linf": 10, "l1": 10}
    assert parse(json.loads(spec.model_dump_json())) == spec
    own = parse({"base_model": "mine", "dataset": "birds", "eps": {"linf": 0.1, "l1": 1}})
    assert isinstance(own, FineTuneSpec)
    assert own.method.steps == {"linf": 10, "l1": 10}


def test_perceptual_training_gets_the_bound_of_its_data_set() -> None:
    def bound(dataset: str, **options: Any) -> float | None:
        eps = {"eps": {"linf": 0.1}} if dataset == "birds" else {}
        spec = parse({"base_model": "mine", "dataset": dataset, "method": {"name": "pat", **options}, **eps})
        assert isinstance(spec, FineTuneSpec)
        assert parse(json.loads(spec.model_dump_json())) == spec
        return spec.method.bound

    assert [bound(dataset) for dataset in ("cifar10", "imagenet", "birds")] == [0.5, 0.25, 0.5]
    assert bound("imagenet", bound=0.5) == 0.5


def test_cifar100_gets_the_radii_of_the_field() -> None:
    assert parse({"base_model": "mine", "dataset": "cifar100"}).eps == {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}


@pytest.mark.parametrize(
    "body",
    [
        _SMALLEST,
        {"kind": "evaluate", **_SMALLEST},
        {"kind": "train", "architecture": "digits-cnn", "dataset": "digits", "method": "nat"},
        {"base_model": "mine", "dataset": "imagenet", "extra_dataset": "more", "extra_share": 0.25},
    ],
)
def test_a_resolved_spec_reads_back_as_itself(body: dict[str, Any]) -> None:
    spec = parse(body)
    assert parse(json.loads(spec.model_dump_json())) == spec


def test_radii_may_be_fractions_and_are_put_in_order() -> None:
    spec = parse({**_SMALLEST, "eps": {"l1": "3/2", "linf": " 38 / 255 "}})
    assert spec.eps == {"linf": 38 / 255, "l1": 1.5}
    assert list(spec.eps) == ["linf", "l1"]


def test_one_number_of_steps_stands_for_every_attacked_norm() -> None:
    spec = parse({**_SMALLEST, "method": {"name": "sat", "steps": 7}})
    assert isinstance(spec, FineTuneSpec)
    assert spec.method.steps == {"linf": 7, "l2": 7, "l1": 7}


def test_a_method_comes_with_its_own_options_and_no_others() -> None:
    def options(method: str | dict[str, Any]) -> dict[str, Any]:
        spec = parse({**_SMALLEST, "method": method})
        assert isinstance(spec, FineTuneSpec)
        return {name: value for name, value in spec.method.model_dump(exclude_none=True).items() if name not in _SHARED}

    assert options("nat") == {}
    assert options("e-at") == {"loss": "cross-entropy"}
    assert options({"name": "msd", "loss": "trades"}) == {"loss": "trades", "beta": 6}
    assert options("ramp") == {"loss": "cross-entropy", "pairing": 0.5}
    assert options({"name": "pat", "bound": 1}) == {"bound": 1}
    assert options({"name": "pat", "margin_limit": 1}) == {"bound": 0.5, "margin_limit": 1}


@pytest.mark.parametrize(
    ("change", "pointer", "remedy"),
    [
        ({"ephocs": 3}, "/ephocs", "did you mean 'epochs'?"),
        ({"evaluation": {"protcol": "fast"}}, "/evaluation/protcol", "did you mean 'protocol'?"),
        ({"method": {"name": "e-at", "step": 3}}, "/method/step", "did you mean 'steps'?"),
        ({"method": "eat"}, "/method/name", "did you mean 'e-at'?"),
        ({"method": "E-AT"}, "/method/name", "did you mean 'e-at'?"),
        ({"method": "E_AT"}, "/method/name", "did you mean 'e-at'?"),
        ({"method": {"name": "e-at", "iterations": 5}}, "/method/iterations", "did you mean 'steps'?"),
        ({"lr": 0.1}, "/lr", "did you mean 'learning_rate'?"),
        ({"LR": 0.1}, "/LR", "did you mean 'learning_rate'?"),
        ({"bs": 8}, "/bs", "did you mean 'batch_size'?"),
        ({"epsilon": 8}, "/epsilon", "did you mean 'eps'?"),
        ({"weightDecay": 0}, "/weightDecay", "did you mean 'weight_decay'?"),
        ({"num_epochs": 3}, "/num_epochs", "did you mean 'epochs'?"),
        ({"protocol": "fast"}, "/protocol", "did you mean 'evaluation.protocol'?"),
        ({"norms": ["l1"]}, "/norms", "did you mean 'method.norms'?"),
        ({"schedule": "one_cycle"}, "/schedule", "did you mean 'one-cycle'?"),
        ({"eps": {"L_inf": 0.1}}, "/eps/L_inf", "did you mean 'linf'?"),
        ({"evaluation": {"protocol": "AutoAttack"}}, "/evaluation/protocol", "did you mean 'standard'?"),
        ({"kind": "Fine-Tune"}, "/kind", "did you mean 'finetune'?"),
        ({"kind": "tune"}, "/kind", "finetune, train, evaluate"),
        ({"eps": {"linf": -0.1, "l1": 1}}, "/eps/linf", "greater than 0"),
        ({"eps": {"linf": 0, "l1": 1}}, "/eps/linf", "greater than 0"),
        ({"eps": {"linf": 8, "l1": 1}}, "/eps/linf", '"8/255" is 0.03137'),
        ({"eps": {"l2": 127.5}, "method": "nat"}, "/eps/l2", '"127.5/255" is 0.5'),
        ({"eps": {"linf": 0.7, "l1": 1}}, "/eps/linf", "in pixel units of images in [0, 1]"),
        ({"eps": {"linf": "nan", "l1": 1}}, "/eps/linf", '"8/255"'),
        ({"eps": {"linf": "1/0", "l1": 1}}, "/eps/linf", '"8/255"'),
        ({"eps": {"linf": "1e999999999", "l1": 1}}, "/eps/linf", '"8/255"'),
        ({"eps": {"linf": float("inf"), "l1": 1}}, "/eps/linf", "finite"),
        ({"eps": {"linf": 0.1, "l7": 1}}, "/eps/l7", "'linf', 'l2' or 'l1'"),
        ({"eps": {}}, "/eps", '{"linf": "8/255"}'),
        ({"eps": {"linf": 0.1}}, "/eps/l1", "add eps.l1"),
        ({"method": "single"}, "/method/norms", "set method.norms"),
        ({"method": {"name": "e-at", "norms": ["linf", "linf"]}}, "/method/norms", "each once"),
        ({"method": {"name": "e-at", "steps": {"linf": 5}}}, "/method/steps", "one number for all"),
        ({"method": {"name": "e-at", "bound": 0.5}}, "/method/bound", "method e-at has no bound"),
        ({"method": {"name": "sat", "pairing": 1}}, "/method/pairing", "choose from ramp"),
        ({"method": {"name": "pat", "loss": "trades"}}, "/method/loss", "method pat has no loss"),
        ({"method": {"name": "nat", "loss": "trades"}}, "/method/loss", "choose from single"),
        ({"method": {"name": "sat", "margin_limit": 1}}, "/method/margin_limit", "method sat has no margin_limit"),
        ({"method": {"name": "pat", "margin_limit": 0}}, "/method/margin_limit", "greater than 0"),
        ({"method": {"name": "pat", "bound": None}}, "/method/bound", "leave it out for 0.5"),
        ({"method": {"name": "e-at", "beta": 3}}, "/method/beta", "set method.loss to trades"),
        ({"method": {"name": "e-at", "loss": "trades", "beta": 0}}, "/method/beta", "greater than 0"),
        ({"method": {"name": "e-at", "loss": "trades", "beta": None}}, "/method/beta", "leave it out for 6"),
        ({"method": {"name": "e-at", "loss": "hinge"}}, "/method/loss", "'cross-entropy' or 'trades'"),
        ({"method": {"name": "ramp", "norms": ["linf", "l2", "l1"]}}, "/method/norms", "takes 2 of"),
        ({"method": {"name": "pat", "norms": ["l2"]}}, "/method/norms", "takes 0 of"),
        ({"epochs": 0}, "/epochs", "at least 1"),
        ({"learning_rate": 0}, "/learning_rate", "greater than 0"),
        ({"base_model": "../../etc/passwd"}, "/base_model", "letters, digits, dots, hyphens and underscores"),
        ({"base_model": "mine"}, "/dataset", "name the data set"),
        ({"metadata": {"k": "v" * 513}}, "/metadata/k", "at most 512"),
        ({"seed": -1}, "/seed", "at least 0"),
        ({"epochs": True}, "/epochs", "give an integer"),
        ({"epochs": "3"}, "/epochs", "give an integer"),
        ({"epochs": 3.5}, "/epochs", "give an integer"),
        ({"learning_rate": "0.1"}, "/learning_rate", "give a number"),
        ({"evaluation": {"include_base": "no"}}, "/evaluation/include_base", "true or false"),
        ({"eps": {"linf": True, "l1": 1}}, "/eps/linf", '"8/255"'),
        ({"eps": 8}, "/eps", '{"linf": "8/255"'),
        ({"evaluation": "fast"}, "/evaluation", '{"protocol": "fast"}'),
        ({"method": {"name": "e-at", "steps": 1e6}}, "/method/steps", "one integer"),
        ({"base_model": ""}, "/base_model", "shipped: digits-cnn-linf"),
        ({"name": "red\x1b[31m"}, "/name", "leave out control characters"),
        ({"extra_dataset": ""}, "/extra_dataset", "at least 1 character"),
        ({"extra_dataset": "../more"}, "/extra_dataset", "with a letter or digit first"),
        ({"extra_dataset": "more", "batch_size": 1}, "/batch_size", "set batch_size to 2 or more"),
        ({"extra_share": 0.0}, "/extra_share", "greater than 0"),
        ({"method": {"name": "nat", "steps": 3}}, "/method/steps", "attacks no norm: leave steps out"),
        ({"method": {"name": "sat", "norms": "linf"}}, "/method/norms", 'such as ["linf", "l1"]'),
        ({"extra_share": 1.0}, "/extra_share", "less than 1"),
        ({"augmentation": "crop"}, "/augmentation", "resized-crop-flip"),
        (
            {"kind": "evaluate", "extra_dataset": "more"},
            "/extra_dataset",
            "a run of kind evaluate has no extra_dataset",
        ),
        ({"kind": "evaluate", "epochs": 3}, "/epochs", "a run of kind evaluate has no epochs"),
    ],
)
def test_bad_input_is_refused_by_field_and_with_a_remedy(change: dict[str, Any], pointer: str, remedy: str) -> None:
    assert remedy in _errors({**_SMALLEST, **change})[pointer]


@pytest.mark.parametrize("body", [None, [], 3, "e-at", {"kind": ["finetune"]}, {"kind": None}])
def test_a_body_that_is_no_spec_at_all_is_refused(body: Any) -> None:
    assert _errors(body)


def test_an_evaluation_has_no_training_knobs() -> None:
    assert "/epochs" in _errors({"kind": "evaluate", **_SMALLEST, "epochs": 3})


def test_all_errors_are_told_at_once_and_no_derived_ones() -> None:
    errors = _errors({**_SMALLEST, "epochs": 0, "seed": "x", "dataset": 5})
    assert set(errors) == {"/epochs", "/seed", "/dataset"}
    errors = _errors({**_SMALLEST, "kind": "Finetune", "lr": 1, "epochs": 0, "method": "E-AT", "name": "\n"})
    assert set(errors) == {"/kind", "/lr", "/epochs", "/method/name", "/name"}


@pytest.mark.parametrize("norm", NORMS)
def test_a_radius_is_refused_exactly_from_where_grey_is_reachable(norm: str) -> None:
    limit = {"linf": 0.5, "l2": sqrt(64) / 2, "l1": 32}[norm]
    check_radius(norm, limit * 0.999, (1, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grey"):
        check_radius(norm, limit, (1, 8, 8))  # type: ignore[arg-type]


def _codes(body: dict[str, Any]) -> set[str]:
    return {warning.code for warning in spec_warnings(parse(body))}


def test_a_spec_that_is_likely_to_disappoint_comes_with_warnings() -> None:
    quiet = {**_SMALLEST, "method": "sat"}
    assert _codes({**_SMALLEST, "eps": {"linf": 0.15, "l2": 0.47, "l1": 1.5}}) == set()
    assert _codes({**_SMALLEST, "eps": {"linf": 0.15, "l2": 0.5, "l1": 1.5}}) == {"l2_not_covered"}
    assert _codes({**_SMALLEST, "method": "sat"}) == set()
    assert _codes({**_SMALLEST, "method": "nat"}) == {"no_attack"}
    assert _codes({**_SMALLEST, "method": "sat", "extra_share": 0.3}) == {"extra_share_unused"}
    assert _codes({**_SMALLEST, "method": "pat"}) == {"no_norm_attacked"}
    assert _codes({"kind": "evaluate", **_SMALLEST, "eps": {"linf": 0.1}}) == {"eps_differs_from_base"}
    assert _codes({**quiet, "gpus": 64}) == {"many_gpus", "small_share"}
    assert _codes({**quiet, "gpus": 64, "batch_size": 1024, "epochs": 20}) == {"many_gpus"}
    assert _codes({**quiet, "gpus": 8}) == set()


@pytest.mark.parametrize("schedule", ["piecewise", "one-cycle", "cosine", "constant"])
def test_a_run_too_short_for_its_schedule_comes_with_a_warning(schedule: str) -> None:
    """Three steps: one at each of three learning rates."""
    short = {**_SMALLEST, "method": "sat", "schedule": schedule, "epochs": 3, "train_examples": 64}
    assert _codes(short) == (set() if schedule == "constant" else {"few_steps"})
    message = next((warning.message for warning in spec_warnings(parse(short))), "the run has 3 steps")
    assert "the run has 3 steps" in message


def test_what_the_catalogue_chooses_is_not_warned_about() -> None:
    for name in DATASETS:
        assert _codes({"kind": "train", "architecture": "resnet-50", "dataset": name, "method": "sat"}) == set()


@pytest.mark.parametrize("kind", list(SPECS))
def test_every_field_is_described_and_the_schema_requires_only_what_has_no_default(kind: str) -> None:
    model = SPECS[kind]  # type: ignore[index]
    schema = model.model_json_schema()
    assert schema["properties"].keys() == model.model_fields.keys()
    assert all(field["description"] for field in schema["properties"].values())
    required = {"finetune": {"base_model"}, "train": {"architecture"}, "evaluate": {"base_model"}}[kind]
    assert set(schema.get("required", [])) == required


def test_the_catalogue_is_consistent() -> None:
    for model in MODELS.values():
        assert model.architecture in ARCHITECTURES
        assert DATASETS[model.dataset].eps[model.norm] == model.eps
    for method in METHODS.values():
        assert method.norms is None or method.min_norms <= len(method.norms) <= method.max_norms
        assert method.options.keys() <= Method.model_fields.keys()
    assert isinstance(parse({"kind": "evaluate", "base_model": "digits-cnn-linf"}), EvaluateSpec)
