"""The learning-rate schedules, and the parameter groups of the optimiser."""

import pytest
import torch

from core.schema.spec import TrainSpec, parse
from core.training.optimisation import learning_rate, parameter_groups


def test_piecewise_drops_on_the_last_step_of_each_third() -> None:
    rates = [learning_rate("piecewise", 1.0, step, 30) for step in range(30)]
    assert rates == pytest.approx([1.0] * 9 + [0.1] * 10 + [0.01] * 11)


def test_one_cycle_rises_for_three_tenths_and_falls_to_zero() -> None:
    rates = [learning_rate("one-cycle", 1.0, step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1, abs=2e-3)
    assert rates.index(max(rates)) in (299, 300)
    assert rates[0] < 0.01
    assert rates[-1] < 0.01


def test_training_from_random_weights_decays_only_matrices_and_kernels() -> None:
    spec = parse({"kind": "train", "architecture": "digits-cnn", "dataset": "digits"})
    assert isinstance(spec, TrainSpec)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(parameter_groups(model, spec), lr=1.0, weight_decay=spec.weight_decay)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {p.dim() > 1: decays[id(p)] for p in model.parameters()} == {True: 5e-4, False: 0.0}
    assert len(decays) == len(list(model.parameters()))
