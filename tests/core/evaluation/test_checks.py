"""What makes an evaluation doubtful is said in its flags."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Attack, AttackResult, Steps
from core.evaluation import autoattack
from core.evaluation.autoattack import attacks_of, evaluate


class _Doubtful(nn.Module):
    """A small linear classifier with something wrong."""

    def __init__(self, classes: int, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.spoil = spoil

    def forward(self, images: Tensor) -> Tensor:
        return self.spoil(self.linear(images.flatten(1)))


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("randomized", lambda logits: logits + 0.1 * torch.randn_like(logits)),
        ("probabilities", lambda logits: logits.softmax(1)),
        pytest.param("probabilities", lambda logits: logits.bfloat16().softmax(1).float(), id="in bfloat16"),
        ("zero_gradients", lambda logits: (logits * 1e3).round() + 0 * logits),
        ("saturated", lambda logits: logits * 1e5),
    ],
)
def test_what_makes_an_evaluation_unreliable_is_flagged(
    code: str, spoil: Callable[[Tensor], Tensor], test_digits: tuple[Tensor, Tensor]
) -> None:
    images = test_digits[0][:10]
    torch.manual_seed(0)
    sound, doubtful = _Doubtful(10, lambda logits: logits), _Doubtful(10, spoil)
    reports = [
        evaluate(model, images, model(images).argmax(1), {"linf": 0.01}, protocol="fast") for model in (sound, doubtful)
    ]
    assert reports[0].flags == ()
    assert code in {flag.code for flag in reports[1].flags}


class _Standardising(nn.Module):
    """A linear classifier of images that are standardised over the batch, as batch norm without statistics does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(1, track_running_stats=False), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.norm(images).flatten(1))


@pytest.mark.parametrize("points", [1, 10])
def test_answers_that_depend_on_batch_mates_are_flagged(points: int, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (part[:points] for part in test_digits)
    torch.manual_seed(0)
    report = evaluate(_Standardising(), images, labels, {"linf": 0.01}, protocol="fast")
    assert "batch_dependent" in {flag.code for flag in report.flags}


def test_few_classes_are_flagged_with_what_is_done_instead(test_digits: tuple[Tensor, Tensor]) -> None:
    images = test_digits[0][:6]
    model = _Doubtful(3, lambda logits: logits)
    report = evaluate(model, images, model(images).argmax(1), {"linf": 0.01}, protocol="paper")
    (flag,) = report.flags
    assert flag.code == "few_classes"
    assert "2 targets" in flag.message
    assert "four classes" in flag.message


def test_square_beating_the_gradient_attacks_is_flagged(
    monkeypatch: pytest.MonkeyPatch, test_digits: tuple[Tensor, Tensor]
) -> None:
    @Attack
    def nothing(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> Steps:
        yield from ()
        return AttackResult(images, torch.ones(len(images), dtype=torch.bool), torch.zeros(len(images)))

    real = attacks_of("standard", "linf")["square"]
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"apgd-ce": nothing, "square": real})
    images = test_digits[0][:20]
    torch.manual_seed(0)
    model = _Doubtful(10, lambda logits: logits)
    report = evaluate(model, images, model(images).argmax(1), {"linf": 0.3}, protocol="standard")
    assert [(flag.code, flag.threat) for flag in report.flags if flag.code == "square_improves"] == [
        ("square_improves", "linf")
    ]
