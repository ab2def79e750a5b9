"""FAB-T against closed forms, against its contract, and against pyautoattack."""

import pytest
import torch
import torch.nn.functional as F
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from core.attacks import AttackOptions
from core.attacks.fab import fab_t
from core.attacks.reference import NAMES
from core.attacks.threat import LpThreat
from core.geometry import length
from core.schema.catalog import NORMS, Norm

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}
_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


def _linear(classes: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with torch.no_grad():
        model[1].weight.copy_(0.3 * torch.randn(classes, 64, generator=torch.Generator().manual_seed(classes)))
        model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    return model


def _compare_verdicts(
    model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, *, targets: int, steps: int
) -> None:
    """Check that we and pyautoattack disagree on no more points than it does with itself at half the batch size."""

    def theirs(batch_size: int) -> Tensor:
        attack = FABAttack_PT(model, norm=NAMES[norm], eps=_EPS[norm], n_restarts=1, n_iter=steps, seed=0, device="cpu")
        attack.targeted, attack.n_target_classes = True, targets
        robust = []
        for points, answers in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            with torch.random.fork_rng():
                adversarial = attack.perturb(points, answers)
            with torch.no_grad():
                robust.append(model(adversarial).argmax(1) == answers)
        return torch.cat(robust)

    ours = fab_t(model, images, labels, LpThreat(norm, _EPS[norm]), targets=targets, steps=steps)
    whole = theirs(len(labels))
    flips = int((ours.robust != whole).sum())
    if flips:
        assert flips <= int((theirs(-(-len(labels) // 2)) != whole).sum())


class _Head(nn.Module):
    """Fewer or more classes out of a network of ten: its first logits, and doubles of them that are less likely."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return torch.cat([logits, 0.8 * logits.roll(1, 1) - 0.5], 1)[:, : self.classes]


def _count_rows(model: nn.Module) -> dict[str, int]:
    """Count the images that go through a model, forward and backward."""
    rows = {"forward": 0, "backward": 0}

    def count(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        rows["forward"] += len(inputs[0])
        if logits.requires_grad:
            logits.register_hook(lambda gradient: rows.update(backward=rows["backward"] + len(gradient)))

    model.register_forward_hook(count)
    return rows


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_a_point_of_a_linear_model_falls_where_its_closest_plane_is_within_reach(norm: Norm, classes: int) -> None:
    model = _linear(classes)
    images = 0.5 + 0.1 * (torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    with torch.no_grad():
        logits = model(images)
        labels = logits.argmax(1)
        slopes = model[1].weight[None] - model[1].weight[labels][:, None]
        heights = logits.gather(1, labels[:, None]) - logits
        steepness = length(slopes.flatten(0, 1), _DUAL[norm]).view_as(heights)
        distance = (heights / steepness).masked_fill(heights == 0, torch.inf).amin(1)
    eps = float(distance.median())
    # The box is out of the way, so that the distance has a closed form.
    assert length(images - 0.5, "linf").max() + distance.max() < 0.5
    result = fab_t(model, images, labels, LpThreat(norm, eps))
    # A step goes 5 % beyond the plane and turning back makes up for it, to within a hundredth of the distance.
    assert result.robust[distance > eps].all()
    assert not result.robust[distance < 0.99 * eps].any()
    assert int((distance < 0.99 * eps).sum()) > 15


@pytest.mark.parametrize("norm", NORMS)
def test_what_falls_is_misclassified_in_ball_and_box_and_the_model_stays_as_it_was(
    norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:40] for points in test_digits)
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 10
    base.train()
    last = list(base.parameters())[-1]
    last.grad = torch.full_like(last, 3.0)
    state, weights = torch.get_rng_state(), [tensor.clone() for tensor in base.state_dict().values()]

    result = fab_t(base, images, labels, LpThreat(norm, 2 * _EPS[norm]), targets=2, steps=10)

    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in base.modules())
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert (last.grad == 3).all()
    assert all(parameter.grad is None for parameter in list(base.parameters())[:-1])
    assert all(map(torch.equal, base.state_dict().values(), weights))
    base.eval()
    with torch.no_grad():
        logits = base(result.adversarial)
    assert torch.equal(logits.argmax(1) == labels, result.robust)
    torch.testing.assert_close(result.loss, F.cross_entropy(logits, labels, reduction="none"))
    assert (length(result.adversarial - images, norm) <= 2 * _EPS[norm]).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert 5 < int(result.robust.sum()) < 38
    assert torch.equal(result.adversarial[result.robust], images[result.robust])
    assert not result.robust[0]
    assert torch.equal(result.adversarial[0], images[0])


@pytest.mark.parametrize(("chunk_size", "walked"), [(2, 2 + 6 + 7), (None, 2 * 2 + 2 * 6)])
def test_a_fallen_point_costs_no_further_passes(chunk_size: int | None, walked: int) -> None:
    model = _linear(3)
    images = torch.full((2, 1, 8, 8), 0.5)
    images[1] += 0.4 * (model[1].weight[0] - model[1].weight[1:].mean(0)).sign().view(1, 8, 8)
    labels = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.5, 0.0, 0.0]) - 0.5 * model[1].weight.sum(1))
        assert model(images).argmax(1).tolist() == [0, 0]
    rows = _count_rows(model)
    result = fab_t(model, images, labels, LpThreat("linf", 0.1), AttackOptions(chunk_size=chunk_size), steps=7)
    # The first point falls in the first step. One after the other, the second goes on alone, six steps and then seven
    # towards the other class; side by side, both points start towards both classes and the second goes on with two.
    assert result.robust.tolist() == [False, True]
    assert rows == {"forward": 2 + 2 * walked, "backward": walked}


def test_walks_side_by_side_give_the_verdicts_of_walks_one_after_the_other(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:40] for points in test_digits)
    side_by_side, two_by_two, one_by_one = (
        fab_t(
            base, images, labels, LpThreat("l1", _EPS["l1"]), AttackOptions(chunk_size=chunk_size), targets=3, steps=15
        )
        for chunk_size in (None, 80, 7)
    )
    assert torch.equal(one_by_one.robust, side_by_side.robust)
    assert torch.equal(one_by_one.robust, two_by_two.robust)
    assert 5 < int(one_by_one.robust.sum()) < 35


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_are_those_of_pyautoattack(
    norm: Norm, classes: int, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    known = test_digits[1] < classes
    images, labels = (points[known][:64] for points in test_digits)
    _compare_verdicts(_Head(base, classes), images, labels, norm, targets=min(2, classes - 1), steps=10)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("classes", [3, 10, 20])
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_at_the_settings_of_autoattack_are_those_of_pyautoattack(
    norm: Norm, classes: int, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    known = test_digits[1] < classes
    images, labels = (points[known] for points in test_digits)
    _compare_verdicts(_Head(base, classes), images, labels, norm, targets=min(9, classes - 1), steps=100)
