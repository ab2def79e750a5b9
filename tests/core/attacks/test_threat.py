"""Threats: what each allows, and that attacks can be called with nothing but a threat."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import AttackOptions
from core.attacks.apgd import apgd_ce
from core.attacks.square import square
from core.attacks.threat import LpThreat, PerceptualThreat, UnionThreat
from core.schema.catalog import NORMS, Norm


def _moved(images: Tensor, norm: Norm, distance: float) -> Tensor:
    """Move all four pixels of each image up, so that the perturbation has this length."""
    return images + {"linf": distance, "l2": distance / 2, "l1": distance / 4}[norm]


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_contains_what_is_no_farther_than_its_radius_and_rounding(norm: Norm) -> None:
    images = torch.full((2, 1, 2, 2), 0.25)
    threat = LpThreat(norm, 0.2)
    assert threat.id == norm
    assert threat.contains(images, _moved(images, norm, 0.2)).tolist() == [True, True]
    assert threat.contains(images, _moved(images, norm, 0.20001)).tolist() == [True, True]
    outside = images.clone()
    outside[1] = _moved(images, norm, 0.2005)[1]
    assert threat.contains(images, outside).tolist() == [True, False]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_what_leaves_the_box_is_not_allowed_however_near_it_is(norm: Norm, edge: float) -> None:
    images = torch.full((2, 1, 2, 2), edge)
    outside = images.clone()
    outside[1, 0, 0, 0] += 1e-6 if edge else -1e-6
    assert LpThreat(norm, 0.2).contains(images, outside).tolist() == [True, False]


def test_a_union_contains_what_one_of_its_balls_contains() -> None:
    union = UnionThreat.of({"linf": 0.1, "l1": 0.15})
    images = torch.full((3, 1, 2, 2), 0.5)
    perturbed = images.clone()
    perturbed[0] += 0.1
    perturbed[1, 0, 0, 0] += 0.15
    perturbed[2, 0, 0, 0] += 0.16
    assert union.contains(images, perturbed).tolist() == [True, True, False]
    assert [ball.id for ball in union] == ["linf", "l1"]


def test_ids_are_the_rows_of_a_report() -> None:
    assert (UnionThreat.of({}).id, PerceptualThreat(0.5).id) == ("union", "lpips")


@pytest.mark.parametrize("attack", [apgd_ce.with_settings(steps=4), square.with_settings(queries=10)])
def test_options_can_be_used_again_and_default_to_seed_0_and_one_batch(
    attack: object, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:6] for points in test_digits)
    threat, options = LpThreat("l2", 0.5), AttackOptions(seed=0, batch_sizes=(6,))
    first, again, default = (
        attack(base, images, labels, threat, *given)  # type: ignore[operator]
        for given in ((options,), (options,), ())
    )
    assert torch.equal(first.adversarial, again.adversarial)
    assert torch.equal(first.adversarial, default.adversarial)
