"""Multi steepest descent by hand, and against its contract."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks.apgd import apgd
from core.attacks.msd import msd
from core.attacks.threat import LpThreat, UnionThreat
from core.geometry import length
from core.schema.catalog import NORMS, Norm

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


def _linear(slopes: list[float]) -> nn.Module:
    """Two logits for one row of pixels: zero, and the slopes times the pixels. Label 0 is attacked up the slopes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(slopes), 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * len(slopes), slopes]))
    return model


def test_each_round_goes_on_from_the_candidate_of_highest_loss_point_by_point() -> None:
    # The first pixel of the second image has no room left. From there, along slopes of 10, 1, 1, 1:
    #   first image    linf 0.1 * 13 = 1.3    l1 0.15 * 10 = 1.5    so l1
    #   second image   linf 0.1 * 3 = 0.3     l1 0.15 * 1 = 0.15    so linf
    model = _linear([10, 1, 1, 1])
    images = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]]).view(2, 1, 1, 4)
    labels = torch.zeros(2, dtype=torch.long)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    result = msd(model, images, labels, UnionThreat.of({"linf": 0.1, "l1": 0.15}), steps={"linf": 2, "l1": 2})
    assert len(seen) == 6
    first_linf = torch.tensor([[0.6, 0.6, 0.6, 0.6], [1.0, 0.6, 0.6, 0.6]])
    first_l1 = torch.tensor([[0.65, 0.5, 0.5, 0.5], [1.0, 0.55, 0.55, 0.55]])
    kept = torch.stack([first_l1[0], first_linf[1]])
    for points, by_hand in zip(seen, [images, first_linf, first_l1, kept, None, None], strict=True):
        if by_hand is not None:
            torch.testing.assert_close(points.view(2, 4), by_hand.view(2, 4))
    # The second round brings nothing better: the optimum of each ball was reached at once.
    torch.testing.assert_close(result.adversarial.view(2, 4), kept)
    torch.testing.assert_close(result.loss, F.softplus(torch.tensor([8.0, 11.8])))


def test_a_norm_gives_candidates_in_its_own_number_of_rounds() -> None:
    model = _linear([2, 1])
    images = torch.full((1, 1, 1, 2), 0.5)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    msd(model, images, torch.tensor([0]), UnionThreat.of({"linf": 0.1, "l1": 0.1}), steps={"linf": 1, "l1": 3})
    # Gradient, linf, l1, then twice gradient and l1 alone, with steps of 2.5 / 3 of the radius.
    assert len(seen) == 7
    torch.testing.assert_close(seen[1].flatten(), torch.tensor([0.6, 0.6]))
    torch.testing.assert_close(seen[2].flatten(), torch.tensor([0.5 + 0.25 / 3, 0.5]))


def test_a_round_costs_one_gradient_and_a_forward_pass_per_norm(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    passes = {"forward": 0, "backward": 0}

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        passes["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda _: passes.update(backward=passes["backward"] + 1))

    base.register_forward_hook(count)
    msd(base, test_digits[0][:4], test_digits[1][:4], UnionThreat.of(_EPS), steps=dict.fromkeys(NORMS, 10))
    assert passes == {"forward": 10 * (1 + 3), "backward": 10}


def test_msd_stays_in_a_ball_and_about_matches_the_worst_of_three_attacks(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = test_digits
    result = msd(base, images, labels, UnionThreat.of(_EPS), steps=dict.fromkeys(NORMS, 10))
    delta = result.adversarial - images
    inside = torch.stack([length(delta, norm) <= eps * (1 + 1e-4) for norm, eps in _EPS.items()])
    assert inside.any(0).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    with torch.no_grad():
        loss = F.cross_entropy(base(result.adversarial), labels, reduction="none")
        clean = F.cross_entropy(base(images), labels, reduction="none")
    torch.testing.assert_close(result.loss, loss)
    assert (loss >= clean).all()
    alone = [
        apgd(base, images, labels, LpThreat(norm, eps), steps=10, topk_fraction=0.05) for norm, eps in _EPS.items()
    ]
    assert result.loss.mean() > 0.8 * torch.stack([other.loss for other in alone]).amax(0).mean()


def test_robust_is_told_per_norm_and_together(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = test_digits
    result = msd(base, images, labels, UnionThreat.of(_EPS), steps=dict.fromkeys(NORMS, 10))
    assert torch.equal(result.robust, torch.stack(list(result.robust_under.values())).all(0))
    with torch.no_grad():
        found_wrong = base(result.adversarial).argmax(1) != labels
    assert not (result.robust & found_wrong).any()
    # The base withstands linf and l2, not l1.
    shares = {norm: float(robust.float().mean()) for norm, robust in result.robust_under.items()}
    assert shares["l1"] < 0.6 < shares["linf"]


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_state_are_left_as_they_were(
    training: bool, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    base.train(training)
    weights, state = copy.deepcopy(base.state_dict()), torch.get_rng_state()
    images = test_digits[0][:8]
    before = images.clone()
    msd(base, images, test_digits[1][:8], UnionThreat.of(_EPS), steps=dict.fromkeys(NORMS, 2))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert base.training == training
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in base.parameters())
