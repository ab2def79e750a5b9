"""Points outside the threat by rounding: what is handed out lies inside, and what fools only outside is told."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Attack, AttackResult, Steps
from core.attacks.containment import bring_inside
from core.attacks.threat import LpThreat
from core.evaluation import autoattack
from core.evaluation.autoattack import evaluate
from core.schema.catalog import NORMS, Norm

_IMAGES, _LABELS = torch.full((3, 1, 4, 4), 0.25), torch.zeros(3, dtype=torch.long)
_EPS: dict[Norm, float] = {"linf": 0.02, "l2": 0.08, "l1": 0.32}
"""At these radii, moving all 16 pixels by 0.02 is the longest move in every norm."""


class _Brightness(nn.Module):
    """Answers 0 until the pixels of an image have risen by a limit in all."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        risen = (images.double() - 0.25).flatten(1).sum(1).float()
        return torch.stack([torch.zeros_like(risen), 100 * (risen - self.limit)], 1)


def _moved(excess: float) -> Tensor:
    """Move the first image by half of the radius, and the others a bit farther than allowed."""
    return _IMAGES + torch.tensor([0.01, 0.02 + excess, 0.02 + excess]).view(3, 1, 1, 1)


@Attack
def _overshooting(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> Steps:
    yield from ()
    found = _moved(1e-6)
    with torch.no_grad():
        return AttackResult(found, model(found).argmax(1) == labels, torch.zeros(len(images)))


@pytest.mark.parametrize("norm", NORMS)
def test_points_just_outside_are_replaced_by_projections_that_fool(norm: Norm) -> None:
    threat, fooled = LpThreat(norm, _EPS[norm]), torch.ones(3, dtype=torch.bool)
    found = _moved(1e-6)
    inside, outside = bring_inside(_Brightness(0.1), _IMAGES, _LABELS, found, fooled, threat)
    assert not outside.any()
    assert threat.contains_exactly(_IMAGES, found).tolist() == [True, False, False]
    assert threat.contains_exactly(_IMAGES, inside).all()
    assert torch.equal(inside[0], found[0])
    torch.testing.assert_close(inside, found, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_points_that_fool_only_outside_stay_as_they_are_and_are_told(norm: Norm) -> None:
    threat, fooled = LpThreat(norm, _EPS[norm]), torch.tensor([False, True, True])
    inside, outside = bring_inside(_Brightness(0.320005), _IMAGES, _LABELS, _moved(1e-6), fooled, threat)
    assert outside.tolist() == [False, True, True]
    assert torch.equal(inside, _moved(1e-6))


def test_an_attack_hands_out_points_inside() -> None:
    threat = LpThreat("l1", _EPS["l1"])
    result = _overshooting(_Brightness(0.1), _IMAGES, _LABELS, threat)
    assert not result.robust.any()
    assert threat.contains_exactly(_IMAGES, result.adversarial).all()


@pytest.mark.parametrize("norm", NORMS)
def test_fooled_only_outside_keeps_the_verdict_and_is_flagged(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"apgd-ce": _overshooting})
    eps = {norm: _EPS[norm]}
    sharp, blunt = (evaluate(_Brightness(limit), _IMAGES, _LABELS, eps, protocol="fast") for limit in (0.320005, 0.1))
    assert sharp.verdicts[norm] == "100"
    assert [(flag.code, flag.threat) for flag in sharp.flags] == [("outside_ball", norm)]
    assert sharp.flags[0].message.startswith("2 of 3 points")
    assert sharp.attacks[0].outside_ball == 2
    assert blunt.verdicts[norm] == "000"
    assert blunt.flags == ()


def test_leaving_the_threat_by_more_than_rounding_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"apgd-ce": _overshooting})
    with pytest.raises(RuntimeError, match=r"apgd-ce left .* at 2 points"):
        evaluate(_Brightness(0.3), _IMAGES, _LABELS, {"linf": 0.0199}, protocol="fast")
