"""Nothing of what a GPU runs takes for granted that tensors lie in the machine's own memory."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.autoattack import Case, compare
from core.attacks.fab import fab_t
from core.attacks.square import square
from core.attacks.threat import LpThreat
from core.data.split import Batch
from core.evaluation.autoattack import evaluate
from core.schema.catalog import METHODS, NORMS, Norm
from core.schema.method import Method
from core.training.methods import build
from core.training.methods.contract import whole
from tests.support.other_device import DEVICE, elsewhere, move

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


@pytest.fixture
def four(test_digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, labels = test_digits
    return images[:4], labels[:4]


def test_the_device_refuses_what_lies_on_another() -> None:
    with elsewhere():
        there = torch.ones(3).to(DEVICE)
        assert there.device == DEVICE
        assert (there + 1).tolist() == [2, 2, 2]
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=DEVICE)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_there(method: str, base: nn.Module, four: tuple[Tensor, Tensor]) -> None:
    options: dict[str, object] = {"name": method}
    if method not in ("nat", "pat"):
        options |= {"steps": 2, "loss": "trades"}
    if method == "single":
        options["norms"] = ["l1"]
    with elsewhere():
        batch = Batch(*(tensor.to(DEVICE) for tensor in four))
        training = build(Method.model_validate(options), _EPS, torch.Generator().manual_seed(0))
        training(move(base).train(), batch, whole(batch), {}).total().backward()
        assert all(parameter.grad is not None for parameter in base.parameters())


def test_an_evaluation_there_gives_the_verdicts_of_one_here(base: nn.Module, four: tuple[Tensor, Tensor]) -> None:
    expected = evaluate(base, *four, _EPS, protocol="fast")
    with elsewhere():
        found = evaluate(move(base), *(tensor.to(DEVICE) for tensor in four), _EPS, protocol="fast")
    assert found.verdicts == expected.verdicts


@pytest.mark.parametrize("norm", NORMS)
def test_the_attacks_of_standard_run_there(norm: Norm, base: nn.Module, four: tuple[Tensor, Tensor]) -> None:
    attacks = {"square": partial(square, queries=20), "fab-t": partial(fab_t, targets=2, steps=3)}
    expected = {
        name: attack(base, *four, LpThreat(norm, _EPS[norm])).robust.tolist() for name, attack in attacks.items()
    }
    with elsewhere():
        images, labels = (tensor.to(DEVICE) for tensor in four)
        move(base)
        found = {
            name: attack(base, images, labels, LpThreat(norm, _EPS[norm])).robust.tolist()
            for name, attack in attacks.items()
        }
    assert found == expected


def test_ours_and_pyautoattack_are_compared_there(base: nn.Module, four: tuple[Tensor, Tensor]) -> None:
    with elsewhere():
        images, labels = (tensor.to(DEVICE) for tensor in four)
        model = move(base).requires_grad_(requires_grad=False)
        cell = compare(Case("base", model, images, labels, _EPS, "fast"), "linf", own=False)
    assert (cell.points, cell.clean) == (4, 4)
