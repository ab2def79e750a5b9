"""What a run costs, counted from its spec, against the passes that are really made."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from core.attacks.threat import LpThreat
from core.data.split import Batch, Split
from core.data.training_set import TrainingSet
from core.evaluation.autoattack import attacks_of, evaluate
from core.models.digits_cnn import DigitsCNN
from core.schema import cost_model
from core.schema.catalog import DATASETS, METHODS, NORMS
from core.schema.cost_model import (
    Passes,
    Size,
    attacks_on_a_point,
    count_steps,
    passes_of_evaluation,
    passes_of_monitoring,
    passes_of_run,
    passes_of_training,
    passes_of_update,
)
from core.schema.protocols import AttackName
from core.schema.spec import parse
from core.training.methods import build
from core.training.methods.contract import whole
from core.training.monitoring import monitor

EPS = DATASETS["digits"].eps


def finetune(**fields):
    return parse({"base_model": "digits-cnn-linf", **fields})


@contextmanager
def counting(last: nn.Module) -> Iterator[Counter]:
    """Count images that pass through a model's last layer."""
    passes: Counter = Counter()

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        passes["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(backward=len(gradient)))

    handle = last.register_forward_hook(count)
    yield passes
    handle.remove()


class Sure(nn.Module):
    """Right about class 0 whatever is done to an image, with a gradient all the same: no point falls."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(64, classes)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.bias.copy_(torch.arange(classes) * -0.01)
            self.last.bias[0] = 20

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.flatten(1))


def points(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.zeros(count, dtype=torch.long)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "nat"},
        {"name": "single", "norms": ["l1"], "steps": 3},
        {"name": "single", "norms": ["l2"], "steps": 3, "loss": "trades"},
        {"name": "sat", "steps": 3},
        {"name": "e-at", "steps": 4},
        {"name": "avg", "steps": {"linf": 2, "l2": 3, "l1": 5}},
        {"name": "avg", "steps": 2, "loss": "trades"},
        {"name": "max", "steps": {"linf": 2, "l2": 3, "l1": 5}},
        {"name": "max", "steps": 2, "loss": "trades"},
        {"name": "msd", "steps": {"linf": 2, "l2": 3, "l1": 5}},
        {"name": "msd", "steps": 3, "loss": "trades"},
        {"name": "ramp", "steps": {"linf": 2, "l1": 4}},
        {"name": "ramp", "steps": 2, "loss": "trades"},
        {"name": "pat"},
    ],
    ids=str,
)
def test_a_training_step_costs_the_passes_that_are_counted(method: dict) -> None:
    spec = finetune(method=method)
    model = DigitsCNN(10).train()
    training = build(spec.method, spec.eps, torch.Generator().manual_seed(0))
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4))
    # The first batch also tries the twin that attacks look at.
    training(model, batch, whole(batch), {})
    with counting(model.classifier) as passes:
        training(model, batch, whole(batch), {}).loss.backward()
    expected = passes_of_training(spec.method) * 4
    assert (passes["forward"], passes["backward"]) == (expected.forward, expected.backward)


@pytest.mark.parametrize("method", ["nat", "e-at", "avg", "max", "msd", "ramp", "pat"])
@pytest.mark.parametrize("loss", ["cross-entropy", "trades"])
def test_a_perturbation_of_the_weights_costs_one_more_update(method: str, loss: str) -> None:
    options = {} if method in ("nat", "pat") else {"steps": 2, "loss": loss}
    spec = finetune(method={"name": method, **options})
    model = DigitsCNN(10).train()
    training = build(spec.method, spec.eps, torch.Generator().manual_seed(0))
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4))
    found = training(model, batch, whole(batch), {})
    with counting(model.classifier) as passes:
        found.again().total().backward()
    expected = passes_of_update(spec.method) * 4
    assert (passes["forward"], passes["backward"]) == (expected.forward, expected.backward)


def test_a_run_that_averages_and_perturbs_counts_it() -> None:
    size = Size(train_examples=5000, test_examples=0)
    body = {"epochs": 3, "held_out": 100, "method": {"name": "ramp", "steps": 4}}
    plain, averaged, perturbed, unseen = (
        passes_of_run(finetune(**{**body, **change}), size)
        for change in ({}, {"average": {}}, {"awp": {"start_epoch": 1}}, {"average": {}, "held_out": 0})
    )
    strong = Passes(3 * (1 + 21) + 2, 3 * 20)
    assert averaged == plain + (strong * 100 + Passes(2048)) * 3
    assert perturbed == plain + Passes(2, 2) * 4900 * 2
    assert unseen == passes_of_run(finetune(**{**body, "held_out": 0}), size) + Passes(2048)


def test_monitoring_an_average_costs_what_is_counted() -> None:
    model, (images, labels) = Sure().train(), points(5)
    spec = finetune(held_out=5, method={"name": "e-at", "steps": {"linf": 4, "l1": 7}}, average={})
    with counting(model.last) as passes:
        monitor(model, Split((255 * images).byte(), labels), spec, step=1, epoch=1.0, chunk_size=64, averaged=model)
    expected = passes_of_monitoring(spec) * 5
    assert (passes["forward"], passes["backward"]) == (expected.forward, expected.backward)


def test_every_method_and_every_attack_has_a_cost() -> None:
    assert cost_model._COSTS_OF_METHODS.keys() == METHODS.keys()
    assert cost_model._COSTS_OF_ATTACKS.keys() == set(get_args(AttackName))


def test_a_method_that_draws_a_norm_costs_the_mean_of_its_norms() -> None:
    method = finetune(method={"name": "sat", "steps": {"linf": 5, "l2": 5, "l1": 20}}).method
    assert passes_of_training(method) == Passes(10 + 1 + 1, 10 + 1)


@pytest.mark.parametrize(
    ("protocol", "norm", "classes"),
    [
        *(("fast", norm, 10) for norm in NORMS),
        ("paper", "linf", 3),
        ("paper", "l1", 3),
        pytest.param("standard", "l2", 4, marks=pytest.mark.slow),
        pytest.param("paper", "l1", 10, marks=pytest.mark.slow),
    ],
)
def test_an_attack_costs_what_is_counted_where_no_point_falls(protocol: str, norm: str, classes: int) -> None:
    model = Sure(classes).eval()
    images, labels = points(2)
    counted = attacks_on_a_point(protocol, norm, classes=classes)
    attacks = attacks_of(protocol, norm)
    assert list(counted) == list(attacks)
    for name, attack in attacks.items():
        with counting(model.last) as passes:
            found = attack(model, images, labels, LpThreat(norm, EPS[norm]))
        assert found.robust.all()
        bound = counted[name] * 2
        if name == "square":
            # It spends no pass on a move that is known not to help.
            assert 0 < passes["forward"] <= bound.forward
        else:
            assert (passes["forward"], passes["backward"]) == (bound.forward, bound.backward), name


def test_with_ten_classes_the_attacks_are_those_of_the_paper() -> None:
    assert attacks_on_a_point("paper", "linf", classes=10) == {
        "apgd-ce": Passes(1 + 101, 100),
        "apgd-t": Passes(1 + 9 * 101, 900),
    }
    assert attacks_on_a_point("standard", "l1", classes=None) == {
        "apgd-ce": Passes(1 + 5 * 103, 500),
        "apgd-t": Passes(1 + 5 * 103, 500),
        "fab-t": Passes(1 + 9 * 200, 900),
        "square": Passes(5002),
    }


def test_an_evaluation_costs_what_is_counted_where_no_point_falls() -> None:
    model, (images, labels) = Sure().eval(), points(6)
    spec = finetune(evaluation={"protocol": "fast", "examples": 6, "batch_size": 4})
    with counting(model.last) as passes:
        evaluate(model, images, labels, spec.eps, protocol="fast", batch_size=4)
    bound = passes_of_evaluation(spec, 6, classes=10)
    # Trying whether batch norms fold is not counted, nor what a sound model is not asked.
    assert 0.98 * bound.forward <= passes["forward"] <= bound.forward + 16
    assert 0.98 * bound.backward <= passes["backward"] <= bound.backward


def test_an_evaluation_of_points_that_fall_costs_less() -> None:
    model, (images, labels) = Sure().eval(), points(6)
    spec = finetune(evaluation={"examples": 6})
    with counting(model.last) as passes:
        evaluate(model, images, labels + 1, spec.eps)
    assert passes.total() < 0.05 * passes_of_evaluation(spec, 6, classes=10).total


def test_monitoring_costs_what_is_counted_where_no_point_falls() -> None:
    model, (images, labels) = Sure().train(), points(5)
    spec = finetune(held_out=5, method={"name": "e-at", "steps": {"linf": 4, "l1": 7}})
    with counting(model.last) as passes:
        monitor(model, Split((255 * images).byte(), labels), spec, step=1, epoch=1.0, chunk_size=64)
    strong = 3 * (1 + 21) + 2  # a look and 20 steps for each norm, for l1 in three stages
    assert passes == {"forward": 5 * (strong + 5 + 8), "backward": 5 * (3 * 20 + 4 + 7)}
    size = Size(train_examples=5, test_examples=0)
    assert passes_of_run(spec.model_copy(update={"epochs": 1}), size) == Passes(5 * (strong + 13), 5 * 71)


def test_a_whole_run_is_its_epochs_and_its_evaluations() -> None:
    spec = finetune(epochs=2, train_examples=100, held_out=0, evaluation={"protocol": "fast", "examples": 10})
    training = 100 * 2 * (11 + 1 + 10 + 1)
    evaluation = 10 * (1 + 3 + 3 * (1 + 21 + 20) + 2) + 9 * 10
    digits = Size.of("digits")
    assert passes_of_run(spec, digits).total == training + 2 * evaluation
    once = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"include_base": False})})
    assert passes_of_run(once, digits).total == training + evaluation
    alone = parse({"kind": "evaluate", "base_model": "digits-cnn-linf", "evaluation": spec.evaluation.model_dump()})
    assert passes_of_run(alone, digits).total == evaluation
    shared = finetune(**spec.model_dump(exclude={"extra_dataset", "extra_share"}), extra_dataset="more")
    assert passes_of_run(shared, digits).total == 2 * training + 2 * evaluation


@pytest.mark.parametrize(
    ("images", "batch", "extra"), [(100, 10, 0), (101, 10, 0), (109, 10, 0), (1, 10, 0), (50, 10, 3), (50, 10, 9)]
)
def test_steps_are_counted_as_the_training_takes_them(images, batch, extra):
    def some(count: int) -> Split:
        return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.zeros(count, dtype=torch.long))

    share = {"extra_dataset": "more", "extra_share": extra / batch} if extra else {}
    spec = finetune(epochs=2, batch_size=batch, held_out=0, **share)
    taken = TrainingSet(some(images), some(7) if extra else None, spec.extra_share).steps(batch)
    assert count_steps(spec, images) == 2 * taken
