"""The learning-rate schedules, the optimisers with their parameter groups and states, and the clipping of gradients."""

from math import cos, pi
from typing import Any

import pytest
import torch
from torch import nn

from core.schema.recipe import Schedule
from core.schema.spec import FineTuneSpec, TrainSpec, parse
from core.training.optimisation import Optimiser, learning_rate, parameter_groups

_CPU = torch.device("cpu")


def _spec(**change: Any) -> FineTuneSpec:
    spec = parse({"base_model": "digits-cnn-linf", "schedule": "constant", **change})
    assert isinstance(spec, FineTuneSpec)
    return spec


def _model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    return model


def _draw_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_piecewise_drops_on_the_last_step_of_each_third() -> None:
    rates = [learning_rate("piecewise", 1.0, step, 30) for step in range(30)]
    assert rates == pytest.approx([1.0] * 9 + [0.1] * 10 + [0.01] * 11)


def test_one_cycle_rises_for_three_tenths_and_falls_to_zero() -> None:
    rates = [learning_rate("one-cycle", 1.0, step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1, abs=2e-3)
    assert rates.index(max(rates)) in (299, 300)
    assert rates[0] < 0.01
    assert rates[-1] < 0.01


def test_cosine_falls_along_half_a_cosine() -> None:
    rates = [learning_rate("cosine", 0.4, step, 100) for step in range(100)]
    assert rates == pytest.approx([0.2 * (1 + cos(pi * (step + 0.5) / 100)) for step in range(100)])


def test_cosine_falls_after_its_warm_up() -> None:
    rates = [learning_rate("cosine", 0.4, step, 100, warmup=0.2) for step in range(100)]
    assert rates[:20] == pytest.approx([0.4 * (step + 0.5) / 20 for step in range(20)])
    assert rates[20:] == pytest.approx([0.2 * (1 + cos(pi * (step + 0.5) / 80)) for step in range(80)])


@pytest.mark.parametrize("schedule", ["piecewise", "constant"])
def test_a_warm_up_multiplies_the_schedule_by_a_linear_rise(schedule: Schedule) -> None:
    rates = [learning_rate(schedule, 1.0, step, 30, warmup=0.2) for step in range(30)]
    plain = [learning_rate(schedule, 1.0, step, 30) for step in range(30)]
    assert rates[:6] == pytest.approx([(step + 0.5) / 6 for step in range(6)])
    assert rates[6:] == plain[6:]


def test_training_from_random_weights_decays_only_matrices_and_kernels() -> None:
    spec = parse({"kind": "train", "architecture": "digits-cnn", "dataset": "digits"})
    assert isinstance(spec, TrainSpec)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(parameter_groups(model, spec), lr=1.0, weight_decay=spec.weight_decay)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {p.dim() > 1: decays[id(p)] for p in model.parameters()} == {True: 5e-4, False: 0.0}
    assert len(decays) == len(list(model.parameters()))


def test_adamw_is_torchs_own_and_decays_only_matrices_and_kernels() -> None:
    spec = _spec(optimizer="adamw", learning_rate=0.01, warmup=0.0, weight_decay=0.1)
    own, expected = _model(), _model()
    optimiser = Optimiser(own, spec, _CPU, 10)
    weights = [parameter for parameter in expected.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in expected.parameters() if parameter.dim() <= 1]
    theirs = torch.optim.AdamW(
        [{"params": weights}, {"params": others, "weight_decay": 0.0}], lr=0.01, weight_decay=0.1
    )
    for step in range(3):
        for model in (own, expected):
            _draw_gradients(model, step)
        optimiser.schedule(step)
        optimiser.step()
        theirs.step()
    assert _same(own, expected)
    assert not _same(own, _model())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimiser_goes_on_from_its_state(optimizer: str) -> None:
    spec = _spec(optimizer=optimizer, learning_rate=0.01)
    whole, resumed = _model(), _model()
    one = Optimiser(whole, spec, _CPU, 10)
    for step in range(2):
        _draw_gradients(whole, step)
        one.step()
    states = {name: value.clone() for name, value in one.state_dict().items()}
    resumed.load_state_dict(whole.state_dict())
    other = Optimiser(resumed, spec, _CPU, 10)
    other.load_state_dict(states)
    for model, optimiser in ((whole, one), (resumed, other)):
        _draw_gradients(model, 2)
        optimiser.step()
    assert _same(whole, resumed)
    assert len(states) == 6 * (1 if optimizer == "sgd" else 3)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_gradients_are_clipped_as_torch_clips_them(limit: float) -> None:
    clipped, expected = _model(), _model()
    optimiser = Optimiser(clipped, _spec(clip_grad_norm=limit, learning_rate=0.1), _CPU, 10)
    theirs = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for model in (clipped, expected):
        _draw_gradients(model, 0)
    length = nn.utils.clip_grad_norm_(expected.parameters(), limit)
    optimiser.step()
    theirs.step()
    assert 0.5 < length < 100
    assert _same(clipped, expected)
