"""Robust accuracy: what counts, what is flagged, and whether it is AutoAttack's number."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from core.attacks import AttackResult
from core.catalog import NORMS, Norm
from core.evaluation import attacks_of, evaluate, rate
from core.events import Report

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


@pytest.fixture
def report(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> Report:
    images, labels = test_digits
    return evaluate(base, images[:60], labels[:60], _EPS, protocol="fast")


def _bits(verdicts: str) -> list[bool]:
    return [verdict == "1" for verdict in verdicts]


def test_union_is_the_points_that_are_right_under_every_norm(report: Report) -> None:
    together = [all(points) for points in zip(*(_bits(report.verdicts[norm]) for norm in NORMS), strict=True)]
    assert _bits(report.verdicts["union"]) == together
    assert report.union.count == sum(together)
    assert report.union.value <= min(rate.value for rate in report.robust.values()) <= report.clean.value
    assert report.average == pytest.approx(sum(rate.value for rate in report.robust.values()) / 3)


def test_a_point_that_is_wrong_without_attack_is_never_robust(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = test_digits
    wrong = labels[:20].clone()
    wrong[::2] = (wrong[::2] + 1) % 10
    report = evaluate(base, images[:20], wrong, {"l2": 0.01}, protocol="fast")
    assert not any(_bits(report.verdicts["l2"])[::2])
    assert report.verdicts["clean"] == report.verdicts["l2"] == "01" * 10


def test_verdicts_agree_with_the_counts_and_each_attack_only_sees_what_stands(report: Report) -> None:
    for norm in NORMS:
        assert report.robust[norm].count == report.verdicts[norm].count("1")
        chain = [record for record in report.attacks if record.norm == norm]
        assert chain[0].attacked == report.clean.count
        assert all(before.robust == after.attacked for before, after in pairwise(chain))


def test_the_same_seed_gives_the_same_verdicts(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:40] for points in test_digits)
    first, again = (evaluate(base, images, labels, _EPS, protocol="fast", seed=4, batch_size=16) for _ in range(2))
    assert first.verdicts == again.verdicts


def test_a_stronger_protocol_never_finds_more_robustness(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:16] for points in test_digits)
    paper = evaluate(base, images, labels, {"linf": 0.15}, protocol="paper")
    fast = evaluate(base, images, labels, {"linf": 0.15}, protocol="fast")
    assert paper.union.value <= fast.union.value


def test_protocols_list_the_attacks_of_the_field() -> None:
    assert list(attacks_of("fast", "linf")) == ["apgd-ce"]
    assert list(attacks_of("paper", "l1")) == ["apgd-ce", "apgd-t"]
    assert list(attacks_of("standard", "l2")) == ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (573, 1000, 0.5422, 0.6033)],
)
def test_intervals_are_wilsons(count: int, total: int, low: float, high: float) -> None:
    interval = rate(count, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


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
        ("zero_gradients", lambda logits: (logits * 1e3).round() + 0 * logits),
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
    from core import evaluation

    def nothing(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> AttackResult:
        return AttackResult(images, torch.ones(len(images), dtype=torch.bool), torch.zeros(len(images)))

    real = attacks_of("standard", "linf")["square"]
    monkeypatch.setattr(evaluation, "attacks_of", lambda *_: {"apgd-ce": nothing, "square": real})
    images = test_digits[0][:20]
    torch.manual_seed(0)
    model = _Doubtful(10, lambda logits: logits)
    report = evaluate(model, images, model(images).argmax(1), {"linf": 0.3}, protocol="standard")
    assert [(flag.code, flag.norm) for flag in report.flags if flag.code == "square_improves"] == [
        ("square_improves", "linf")
    ]


def test_standard_runs_all_four_attacks(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:6] for points in test_digits)
    state = torch.get_rng_state()
    report = evaluate(base, images, labels, {"l1": 1.5}, protocol="standard")
    assert [record.attack for record in report.attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(torch.get_rng_state(), state)
