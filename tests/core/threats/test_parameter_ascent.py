"""What the five attacks on the parameters of a distortion share."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, AttackResult, Returning, State, Steps
from core.schema.errors import BadInput
from core.threats.elastic import ElasticThreat, elastic
from core.threats.fog import FogThreat, fog
from core.threats.gabor import GaborThreat, gabor
from core.threats.jpeg import JpegThreat, jpeg
from core.threats.parameter_ascent import Distortion, Drawn, climb
from core.threats.parameter_threat import ParameterThreat
from core.threats.random_numbers import PointNumbers
from core.threats.snow import SnowThreat, snow
from tests.support.other_device import DEVICE, elsewhere, move


@dataclass(frozen=True)
class _Case:
    attack: Attack[Any, ...]
    threat: Callable[[float], ParameterThreat]
    eps: float
    """A budget at which some digits are fooled and some are not."""

    def run(self, model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> AttackResult:
        """Attack at this budget."""
        return self.attack(model, images, labels, self.threat(self.eps), **settings)


_CASES = {
    "fog": _Case(fog, FogThreat, 128),
    "snow": _Case(snow, SnowThreat, 8),
    "gabor": _Case(gabor, GaborThreat, 160),
    "elastic": _Case(elastic, ElasticThreat, 0.25),
    "jpeg": _Case(jpeg, JpegThreat, 0.5),
}


@pytest.fixture(params=list(_CASES))
def case(request: pytest.FixtureRequest) -> _Case:
    """One of the five attacks."""
    return _CASES[request.param]


class _Small(nn.Module):
    """A smooth network whose answer to a point does not depend on the points beside it."""

    def __init__(self, shape: tuple[int, int, int], classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, math.prod(shape), generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return ((images - 0.5).flatten(1)[:, None] * self.weight.to(images)).sum(2).div(4).tanh() * 3


def _problem(shape: tuple[int, int, int], points: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Make a network, and smooth images of float64 that it has right but for every fifth."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(points, shape[0], 3, 3, generator=generator, dtype=torch.float64)
    images = F.interpolate(coarse, shape[1:], mode="bilinear")
    model = _Small(shape)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::5] = (labels[::5] + 1) % 4
    return model, images, labels


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(images), labels, reduction="none")


def test_the_attacks_keep_the_contract(case: _Case, base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:40] for points in test_digits)
    labels = labels.clone()
    labels[3] = (labels[3] + 1) % 10
    base.train()
    modes = [module.training for module in base.modules()]
    last = list(base.parameters())[-1]
    last.grad = torch.full_like(last, 3.0)
    weights = copy.deepcopy(base.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()

    result, same, other = (case.run(base, images, labels, options=AttackOptions(seed), steps=8) for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in base.modules()] == modes
    assert (last.grad == 3).all()
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    assert torch.equal(result.adversarial, same.adversarial)
    assert not torch.equal(result.adversarial, other.adversarial)
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    base.eval()
    with torch.no_grad():
        assert torch.equal(base(result.adversarial).argmax(1) == labels, result.robust)
    torch.testing.assert_close(result.loss, _cross_entropy(base, result.adversarial, labels), atol=1e-5, rtol=1e-4)
    assert 3 <= result.robust.sum() < 39
    assert not result.robust[3]
    assert torch.equal(result.adversarial[3], images[3])
    attacked = torch.arange(40) != 3
    assert case.threat(case.eps).contains(images[attacked], result.adversarial[attacked]).all()


def test_ascent_fools_more_than_its_start_and_a_larger_budget_no_fewer(
    case: _Case, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:60] for points in test_digits)
    start = case.run(base, images, labels, steps=0)
    fooled = [
        60 - int(case.attack(base, images, labels, case.threat(factor * case.eps), steps=10).robust.sum())
        for factor in (0.5, 1, 2)
    ]
    assert fooled[1] >= 60 - int(start.robust.sum()) + 5
    assert fooled[0] <= fooled[1] + 1
    assert fooled[1] <= fooled[2] + 1
    assert fooled[0] < fooled[2]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 18), (3, 32, 32)])
def test_a_point_gets_the_same_result_in_any_batch_order_and_chunk(case: _Case, shape: tuple[int, int, int]) -> None:
    model, images, labels = _problem(shape, 11)
    images[7], labels[7] = images[1], labels[1]
    whole = case.run(model, images, labels, steps=6)
    assert torch.equal(whole.adversarial[7], whole.adversarial[1])
    order = torch.tensor([4, 0, 9, 7, 3, 10, 2])
    other = case.run(model, images[order], labels[order], options=AttackOptions(chunk_size=3), steps=6)
    torch.testing.assert_close(other.adversarial, whole.adversarial[order], atol=1e-9, rtol=0)
    torch.testing.assert_close(other.loss, whole.loss[order], atol=1e-9, rtol=0)
    for name in ("robust", "late", "no_gradient", "nan_gradients", "not_finite"):
        assert torch.equal(getattr(other, name), getattr(whole, name)[order])
    assert case.threat(case.eps).contains(images[1:5], whole.adversarial[1:5]).all()


@pytest.mark.parametrize("compat", [False, True])
def test_an_attack_goes_on_from_each_of_its_steps(
    case: _Case, compat: bool, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:16] for points in test_digits)

    def begin(state: State | None = None) -> Steps:
        options = AttackOptions(batch_sizes=(6, 10), chunk_size=9, state=state)
        return case.attack.steps(base, images, labels, case.threat(case.eps), options, steps=4, compat=compat)

    states: list[State] = []
    whole = _take(begin(), states)
    assert len(states) == 4
    if not compat:
        assert states[0]["robust"].sum() > states[-1]["robust"].sum(), "points fell on the way"
    for state in states:
        before = {key: tensor.clone() for key, tensor in state.items()}
        result = _take(begin(state))
        for name in ("adversarial", "robust", "loss", "late", "no_gradient", "nan_gradients", "not_finite"):
            assert torch.equal(getattr(result, name), getattr(whole, name)), name
        assert all(torch.equal(tensor, state[key]) for key, tensor in before.items()), "it may be needed again"


def test_in_compat_batches_give_what_each_gives_alone(case: _Case) -> None:
    model, images, labels = _problem((3, 16, 16), 9)
    together = case.run(model, images, labels, options=AttackOptions(batch_sizes=(4, 5)), steps=4, compat=True)
    alone = [case.run(model, images[i:j], labels[i:j], steps=4, compat=True) for i, j in ((0, 4), (4, 9))]
    torch.testing.assert_close(together.adversarial, torch.cat([of.adversarial for of in alone]), atol=1e-9, rtol=0)


@dataclass(frozen=True)
class _Shift(Distortion):
    """Adds the parameters, each at most `eps`."""

    eps: float

    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        return (images + parameters).clamp(0, 1)

    def restrict(self, parameters: Tensor) -> Tensor:
        return parameters.clamp(-self.eps, self.eps)


def _shift(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    compat: bool = False,
    reach: float = 0.05,
    options: AttackOptions = DEFAULTS,
    distortion: Distortion | None = None,
) -> AttackResult:
    def draw(images: Tensor, numbers: PointNumbers) -> Drawn:
        start = 0.1 * numbers.uniform(0, images[0].numel()).view_as(images).to(images) - 0.05
        return Drawn(distortion or _Shift(0.05), start)

    return _take(climb(model, images, labels, draw, options, steps=steps, reach=reach, compat=compat))


def test_on_a_linear_model_the_ascent_ends_at_the_closed_form(two_class_linear: nn.Module) -> None:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double() * 0.8 + 0.1
    with torch.no_grad():
        # Far from the border, so that every point is robust.
        two_class_linear[1].bias.copy_(torch.tensor([20.0, 0.0]))
    two_class_linear.double()
    result = _shift(two_class_linear, images, torch.zeros(6, dtype=torch.int64), steps=10)
    assert result.robust.all()
    slope = (two_class_linear[1].weight[1] - two_class_linear[1].weight[0]).detach().view(3, 16, 16)
    torch.testing.assert_close(result.adversarial, images + 0.05 * slope.sign())


@pytest.mark.parametrize("reach", [0.05, 2.0])
def test_default_keeps_the_best_iterate_and_compat_the_last(reach: float) -> None:
    model, images, _ = _problem((1, 8, 8), 1)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    # So far ahead that the class stays the first.
    model.register_forward_hook(lambda _, inputs, logits: logits + torch.tensor([7.0, 0.0, 0.0, 0.0]))
    labels = torch.tensor([0])
    for compat in (False, True):
        seen.clear()
        result = _shift(model, images, labels, steps=7, reach=reach, compat=compat)
        assert result.robust.all()
        iterates = torch.cat(seen[1:])
        assert len(iterates) == 8
        losses = _cross_entropy(model, iterates, labels.expand(8))
        expected = -1 if compat else int(losses.argmax())
        assert torch.equal(result.adversarial[0], iterates[expected])
        torch.testing.assert_close(result.loss[0], losses[expected])


@pytest.mark.parametrize("compat", [False, True])
def test_the_attacks_run_on_another_device(
    case: _Case, compat: bool, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    # In float64, since steps by the sign of a slope multiply what rounding does.
    base.double()
    images, labels = test_digits[0][:4].double(), test_digits[1][:4]
    colours = images.repeat(1, 3, 2, 2)
    here = [case.run(base, images, labels, steps=3, compat=compat)]
    here.append(case.run(_Certain(), colours, 0 * labels, steps=3, compat=compat))
    with elsewhere():
        images, labels, colours = (tensor.to(DEVICE) for tensor in (images, labels, colours))
        there = [case.run(move(base), images, labels, steps=3, compat=compat)]
        there.append(case.run(_Certain(), colours, 0 * labels, steps=3, compat=compat))
        assert [of.robust.tolist() for of in there] == [of.robust.tolist() for of in here]


class _Counting(nn.Module):
    """Counts the points that pass forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._count)
        return self.model(images)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class _Certain(nn.Module):
    """Has class 0 for everything, with a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, :4].mean(1, keepdim=True)
        return torch.cat([first + 10, first**2], 1)


@pytest.mark.parametrize("compat", [False, True])
def test_passes_of_a_robust_point_are_those_of_the_docstring(case: _Case, compat: bool) -> None:
    model, images = _Counting(_Certain()), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = case.run(model, images, torch.zeros(3, dtype=torch.int64), steps=5, compat=compat)
    assert result.robust.all()
    assert (model.forwards, model.backwards) == (3 * (5 + 2), 3 * 5)
    assert "steps + 2 forward passes" in (case.attack.__doc__ or "").splitlines()[-2]
    assert "steps backward" in (case.attack.__doc__ or "").splitlines()[-2]


def test_no_pass_is_spent_on_a_fooled_point_but_in_compat(
    case: _Case, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:16] for points in test_digits)
    steps: dict[bool, list[int]] = {}
    for compat in (False, True):
        sizes: list[int] = []
        handle = base.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        result = case.run(base, images, labels, steps=8, compat=compat)
        handle.remove()
        steps[compat] = sizes
        if not compat:
            robust = int(result.robust.sum())
    assert steps[True] == [16] * 10
    assert steps[False][:2] == [16, 16]
    assert steps[False] == sorted(steps[False], reverse=True)
    assert robust <= steps[False][-1] < 16


def test_a_point_fooled_in_the_last_tenth_is_marked_late() -> None:
    class Lazy(nn.Module):
        """Turns wrong on call number `at`."""

        def __init__(self, at: int) -> None:
            super().__init__()
            self.calls, self.at = 0, at

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            total = images.mean((1, 2, 3))
            return torch.stack([total, total**2 - 5 + 10 * (self.calls >= self.at)], 1)

    images, labels = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    # The first call sees the images, the next one iterate 0 of 20.
    for compat in (False, True):
        for iterate, late in ((18, False), (19, True), (20, True)):
            result = _shift(Lazy(iterate + 2), images, labels, steps=20, compat=compat)
            assert not result.robust.any()
            assert (result.late == late).all()


class _Blind(nn.Module):
    """Answers without a gradient, or with one that is NaN, or not at all, for the images that are dark."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        total = images.mean((1, 2, 3))
        dark = total.detach() < 0.5
        match self.kind:
            case "no gradient":
                total = torch.where(dark, total.detach(), total)
            case "nan gradient":
                if total.requires_grad:
                    total.register_hook(lambda slope: slope.masked_fill(dark, torch.nan))
            case "not finite":
                total = torch.where(dark, total * torch.inf, total)
        return torch.stack([total + 3, total**2], 1)


def test_points_without_a_usable_gradient_are_reported() -> None:
    images = torch.rand(4, 1, 4, 4) * 0.2 + torch.tensor([0.1, 0.7, 0.1, 0.7]).view(4, 1, 1, 1)
    labels = torch.zeros(4, dtype=torch.int64)
    dark = torch.tensor([True, False, True, False])
    flags = {
        kind: _shift(_Blind(kind), images, labels, steps=3) for kind in ("no gradient", "nan gradient", "not finite")
    }
    assert torch.equal(flags["no gradient"].no_gradient, dark)
    assert not flags["no gradient"].nan_gradients.any()
    assert torch.equal(flags["nan gradient"].nan_gradients, dark)
    found = flags["not finite"]
    assert not found.robust[dark].any()
    assert not _shift(_Blind("no gradient"), images, labels, steps=0).no_gradient.any()


def test_in_compat_a_pixel_that_is_nan_is_that_of_the_image() -> None:
    @dataclass(frozen=True)
    class Holes(_Shift):
        def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
            distorted = super().apply(images, parameters, first=first)
            return torch.where(images < 0.5, torch.nan * parameters, distorted)

    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    result = _shift(_Certain(), images, torch.zeros(2, dtype=torch.int64), steps=3, compat=True, distortion=Holes(0.05))
    hole = images < 0.5
    assert torch.equal(result.adversarial[hole], images[hole])
    assert (result.adversarial[~hole] != images[~hole]).all()


@pytest.mark.parametrize("eps", [0, -1.0, math.nan, math.inf, "8", True, None])
def test_a_budget_that_is_no_number_above_zero_is_refused(case: _Case, eps: Any) -> None:
    with pytest.raises(BadInput, match="not a finite number above 0") as caught:
        case.threat(eps)
    assert caught.value.field == "evaluation.unseen"


@pytest.mark.parametrize(("name", "least"), [("fog", 2), ("snow", 4), ("gabor", 6), ("elastic", 2), ("jpeg", 8)])
def test_images_that_are_too_small_are_refused_with_the_least_size(name: str, least: int) -> None:
    case = _CASES[name]
    # Elastic may not shift pixels out of the image.
    threat = case.threat(1.0)
    assert threat.id == name
    images, labels = torch.rand(2, 1, least, least + 3), torch.zeros(2, dtype=torch.int64)
    assert case.attack(_Certain(), images, labels, threat, steps=2).robust.all()
    with pytest.raises(BadInput, match=f"the least size is {least} x {least}") as caught:
        case.attack(_Certain(), images[:, :, :, : least - 1], labels, threat, steps=2)
    assert caught.value.field == "evaluation.unseen"


def _take(steps: Steps, states: list[State] | None = None) -> AttackResult:
    """Take the steps, and note the states."""
    attack = Returning(steps)
    for state in attack:
        if states is not None:
            states.append({name: tensor.clone() for name, tensor in state().items()})
    return attack.value
