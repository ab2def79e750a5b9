"""APGD against closed forms, against its contract, and against pyautoattack."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.attacks import AttackOptions, AttackResult
from core.attacks.apgd import apgd, apgd_ce, apgd_t
from core.attacks.reference import reference
from core.attacks.threat import LpThreat
from core.geometry import length
from core.schema.catalog import NORMS, Norm

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


def _best_margin_gain(images: Tensor, gradient: Tensor, norm: Norm, eps: float) -> Tensor:
    """Say how far a linear function can rise inside ball and box, in closed form per norm."""
    slope = gradient.abs().flatten(1)
    room = torch.where(gradient > 0, 1 - images, images).flatten(1)
    match norm:
        case "linf":
            return (slope * room.clamp(max=eps)).sum(1)
        case "l2":
            # Along the gradient until a pixel meets the box: change = min(t * slope, room), with t so that it fits.
            low, high = torch.zeros(len(slope), 1), torch.full((len(slope), 1), 1e3)
            for _ in range(60):
                middle = (low + high) / 2
                short = (middle * slope).minimum(room).norm(dim=1, keepdim=True) < eps
                low, high = torch.where(short, middle, low), torch.where(short, high, middle)
            return (slope * (low * slope).minimum(room)).sum(1)
        case "l1":
            # The steepest pixels first, each as far as the box allows, until the radius is used up.
            order = slope.argsort(1, descending=True)
            slope, room = slope.gather(1, order), room.gather(1, order)
            before = room.cumsum(1) - room
            return (slope * (eps - before).clamp(min=0).minimum(room)).sum(1)


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.03), ("linf", 0.3), ("l2", 0.5), ("l2", 4), ("l1", 6), ("l1", 24)]
)
def test_apgd_reaches_the_optimum_of_a_linear_model(norm: Norm, eps: float, two_class_linear: nn.Module) -> None:
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(16, dtype=torch.long)
    weight = two_class_linear[1].weight.detach()
    gradient = (weight[1] - weight[0]).view(1, 3, 16, 16).expand_as(images)
    result = apgd(two_class_linear, images, labels, LpThreat(norm, eps), steps=100)
    gained = ((result.adversarial - images) * gradient).flatten(1).sum(1)
    optimum = _best_margin_gain(images, gradient, norm, eps)
    assert (gained <= optimum * 1.0001).all()
    assert (gained >= 0.98 * optimum).all(), (gained / optimum).min()


@pytest.mark.parametrize("norm", NORMS)
def test_training_attack_costs_one_forward_pass_more_than_steps_and_as_many_backward(
    norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = test_digits
    passes = {"forward": 0, "backward": 0}
    base.register_forward_hook(lambda *_: passes.update(forward=passes["forward"] + 1))
    base.register_full_backward_hook(lambda *_: passes.update(backward=passes["backward"] + 1))
    apgd(base, images[:8].clone().requires_grad_(), labels[:8], LpThreat(norm, _EPS[norm]), steps=10)
    assert passes == {"forward": 11, "backward": 10}


@pytest.mark.parametrize("norm", NORMS)
def test_training_attack_starts_at_the_image_and_returns_its_highest_loss(
    norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = test_digits
    seen: list[Tensor] = []
    base.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    result = apgd(base, images, labels, LpThreat(norm, _EPS[norm]), steps=10, topk_fraction=0.05)
    assert torch.equal(seen[0], images)
    with torch.no_grad():
        logits = [base(points) for points in seen[:11]]
    losses = torch.stack([nn.functional.cross_entropy(row, labels, reduction="none") for row in logits])
    torch.testing.assert_close(result.loss, losses.amax(0))
    assert torch.equal(result.robust, torch.stack([row.argmax(1) == labels for row in logits]).all(0))
    with torch.no_grad():
        again = nn.functional.cross_entropy(base(result.adversarial), labels, reduction="none")
    torch.testing.assert_close(again, result.loss)


@pytest.mark.parametrize("norm", NORMS)
def test_dropping_fallen_points_changes_no_verdict(
    norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = test_digits
    whole = apgd(base, images, labels, LpThreat(norm, _EPS[norm]), steps=40, goal="loss")
    dropped = apgd(base, images, labels, LpThreat(norm, _EPS[norm]), steps=40, goal="error")
    assert torch.equal(whole.robust, dropped.robust)
    with torch.no_grad():
        assert torch.equal(base(dropped.adversarial).argmax(1) == labels, dropped.robust)


def _attacks() -> dict[str, Callable[..., AttackResult]]:
    return {
        "apgd-ce": lambda *args, **more: apgd_ce(*args, **more, steps=10),
        "apgd-t": lambda *args, **more: apgd_t(*args, **more, steps=10, targets=2),
        "reference": lambda *args, **more: reference(*args, **more, name="apgd-ce", steps=10),
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", list(_attacks()))
def test_every_attack_keeps_the_contract(
    name: str, norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    part = [points[:12] for points in test_digits]
    with torch.no_grad():
        right = base(part[0]).argmax(1) == part[1]
    images, labels = (points[right] for points in part)
    base.train()
    base.features[1].eval()
    modes = [module.training for module in base.modules()]
    first = next(base.parameters())
    first.requires_grad_(False)
    last = list(base.parameters())[-1]
    last.grad = torch.full_like(last, 3.0)
    weights = copy.deepcopy(base.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()

    results = [
        _attacks()[name](base, images, labels, LpThreat(norm, _EPS[norm]), AttackOptions(seed)) for seed in (0, 0)
    ]

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in base.modules()] == modes
    assert not first.requires_grad
    assert last.requires_grad
    assert (last.grad == 3).all()
    assert all(parameter.grad is None for parameter in list(base.parameters())[:-1])
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    assert torch.equal(results[0].adversarial, results[1].adversarial)
    result = results[0]
    assert result.adversarial.shape == images.shape
    assert result.robust.shape == result.loss.shape == labels.shape
    assert result.robust.dtype == torch.bool
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    fallen = ~result.robust
    assert (length((result.adversarial - images)[fallen], norm) <= _EPS[norm] * (1 + 1e-4)).all()
    base.eval()
    with torch.no_grad():
        assert (base(result.adversarial[fallen]).argmax(1) != labels[fallen]).all()


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_targeted_attack_works_with_few_classes(norm: Norm, classes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    images = torch.rand(20, 1, 4, 4)
    labels = model(images).argmax(1)
    result = apgd_t(model, images, labels, LpThreat(norm, 3 * _EPS[norm]), steps=20)
    assert not result.robust.all()
    assert torch.equal(model(result.adversarial).argmax(1) == labels, result.robust)


def test_an_attack_on_points_that_are_all_wrong_returns_them() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    images = torch.rand(5, 1, 4, 4)
    labels = (model(images).argmax(1) + 1) % 4
    result = apgd_ce(model, images, labels, LpThreat("linf", 0.1))
    assert not result.robust.any()
    assert torch.equal(result.adversarial, images)
