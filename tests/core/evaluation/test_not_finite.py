"""Logits and gradients that are NaN or infinite: never a fall, never a better number in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Attack, AttackResult, Returning, Steps
from core.attacks.apgd import apgd_ce
from core.attacks.fab import fab_t
from core.attacks.square import square
from core.evaluation import autoattack, resume
from core.evaluation.autoattack import evaluate, iter_evaluate
from core.evaluation.report import merge
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.evaluation.search import Options
from core.schema.catalog import NORMS, Norm
from core.schema.report import Part, Report, Reports

_GENERATOR = torch.Generator().manual_seed(0)
_WEIGHT = 0.3 * torch.randn(64, generator=_GENERATOR)
_IMAGES = 0.5 + 0.2 * (torch.rand(40, 1, 8, 8, generator=_GENERATOR) - 0.5)
_LABELS = torch.zeros(40, dtype=torch.long)
_ATTACKS = {"apgd-ce": apgd_ce.with_settings(steps=20), "fab-t": fab_t.with_settings(steps=20)}
_ATTACKS |= {"square": square.with_settings(queries=100)}


class _Linear(nn.Module):
    """A linear model of two classes that is right about every image, with something added to its logits."""

    def __init__(self, extra: Callable[[Tensor], Tensor] = lambda images: images.new_zeros(len(images))) -> None:
        super().__init__()
        self.extra = extra
        self.bias = nn.Parameter((_IMAGES.flatten(1) @ _WEIGHT).amax() + 0.02)

    def heights(self, images: Tensor) -> Tensor:
        return self.bias - images.flatten(1) @ _WEIGHT

    def forward(self, images: Tensor) -> Tensor:
        height = self.heights(images) + self.extra(images)
        return torch.stack([height, torch.zeros_like(height)], 1)


def _root_of_zero(images: Tensor) -> Tensor:
    """Zero, with a gradient of NaN at the first pixel and of zero at all others."""
    return (0 * images[:, 0, 0, 0]).sqrt()


def _nan_where_brighter(images: Tensor) -> Tensor:
    """Zero at the images, NaN as soon as the sum along the weights grows."""
    rises = images.flatten(1) @ _WEIGHT > (_IMAGES.flatten(1) @ _WEIGHT).amax() + 0.01
    return torch.zeros(len(images)).masked_fill(rises, torch.nan)


def _evaluate(model: nn.Module, eps: dict[Norm, float], **settings: object) -> Report:
    return evaluate(model, _IMAGES, _LABELS, eps, **settings)  # type: ignore[arg-type]


def _flags(report: Report) -> dict[str, str]:
    return {flag.code: flag.message for flag in report.flags}


@pytest.mark.parametrize("attack", list(_ATTACKS))
@pytest.mark.parametrize("norm", NORMS)
def test_a_nan_slope_is_a_zero_slope_and_is_counted(norm: Norm, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {attack: _ATTACKS[attack]})
    steepest = {"linf": _WEIGHT.abs()[1:].sum(), "l2": _WEIGHT[1:].norm(), "l1": _WEIGHT[1:].abs().amax()}[norm]
    distances = _Linear().heights(_IMAGES).detach() / steepest
    eps = float(distances.median())
    report, sound = (_evaluate(model, {norm: eps}) for model in (_Linear(_root_of_zero), _Linear()))
    robust = [verdict == "1" for verdict in report.verdicts[norm]]
    assert all(robust[point] for point in range(40) if distances[point] > 1.05 * eps)
    assert abs(report.robust[norm].count - sound.robust[norm].count) <= 2
    if attack == "square":
        assert "nan_gradients" not in _flags(report), "it takes no gradient"
        return
    # 20 steps in l1 do not come as close to the boundary as in the other norms.
    reached = {"linf": 0.9, "l2": 0.9, "l1": 0.6}[norm] * eps
    assert not any(robust[point] for point in range(40) if distances[point] < reached)
    assert "at 40 of 40 points a gradient contains NaN" in _flags(report)["nan_gradients"]
    assert report.robust[norm].reliable


@pytest.mark.parametrize("attack", list(_ATTACKS))
@pytest.mark.parametrize("norm", NORMS)
def test_logits_that_are_nan_under_attack_are_no_fall(norm: Norm, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {attack: _ATTACKS[attack]})
    report = _evaluate(_Linear(_nan_where_brighter), {norm: {"linf": 0.1, "l2": 1.0, "l1": 6.0}[norm]})
    assert report.robust[norm].count == 40
    assert report.attacks[-1].not_finite > 20
    flag = next(flag for flag in report.flags if flag.code == "not_finite")
    assert flag.threat == norm
    assert flag.message.startswith(f"at {report.attacks[-1].not_finite} of 40 points")
    assert "not reliable" in flag.message
    assert [report.clean.reliable, report.robust[norm].reliable, report.union.reliable] == [True, False, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_images_whose_logits_are_not_finite_are_wrong(value: float) -> None:
    def some(images: Tensor) -> Tensor:
        lost = (images[:, None] == _IMAGES[:3]).flatten(2).all(2).any(1)
        return torch.zeros(len(images)).masked_fill(lost, value)

    # Class 0 would be right for NaN and for infinity, to judge by the largest logit.
    report = _evaluate(_Linear(some), {"linf": 1e-4}, protocol="fast")
    assert report.verdicts["clean"] == report.verdicts["linf"] == "000" + 37 * "1"
    assert report.points is not None
    assert report.points.predicted["clean"][:4] == (-1, -1, -1, 0)
    assert Report.model_validate_json(report.model_dump_json()).points == report.points
    assert "at 3 of 40 points the logits are NaN or infinite without an attack" in _flags(report)["not_finite"]
    assert not report.clean.reliable


def test_one_point_in_a_thousand_without_answer_leaves_a_number_reliable() -> None:
    images, labels = _IMAGES.repeat(26, 1, 1, 1), _LABELS.repeat(26)
    images[5, 0, 0, 0] = 0

    def one(given: Tensor) -> Tensor:
        return torch.zeros(len(given)).masked_fill(given[:, 0, 0, 0] == 0, torch.nan)

    report = evaluate(_Linear(one), images, labels, {"linf": 1e-4}, protocol="fast")
    assert "at 1 of 1040 points" in _flags(report)["not_finite"]
    assert "not reliable" not in _flags(report)["not_finite"]
    assert report.clean.reliable


@pytest.mark.parametrize("finite", [True, False])
def test_an_image_that_is_not_finite_is_no_fall(finite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    @Attack
    def breaking(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> Steps:
        yield from ()
        return AttackResult(images * torch.nan, torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images)))

    class Answering(_Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.nan_to_num(1.0) if finite else images)

    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"apgd-ce": breaking})
    report = _evaluate(Answering(), {"linf": 0.1})
    assert report.robust["linf"].count == 40
    assert report.attacks[0].not_finite == 40


def test_a_point_that_another_attack_fools_is_no_longer_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    @Attack
    def darkening(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> Steps:
        yield from ()
        return AttackResult(images - 0.1, torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images)))

    def lost_or_wrong(images: Tensor) -> Tensor:
        darker = images.mean((1, 2, 3)) < 0.45
        return _nan_where_brighter(images) - 100 * darker

    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"apgd-ce": _ATTACKS["apgd-ce"], "fab-t": darkening})
    report = _evaluate(_Linear(lost_or_wrong), {"linf": 0.1001})
    assert [record.not_finite for record in report.attacks][1] == 0
    assert report.attacks[0].not_finite > 20
    assert report.robust["linf"].count == 0
    assert "not_finite" not in _flags(report)


def _counts(report: Report) -> list[tuple[int, ...]]:
    return [(each.robust, each.not_finite, each.nan_gradients, each.outside_ball) for each in report.attacks]


def _both(images: Tensor) -> Tensor:
    return _root_of_zero(images) + _nan_where_brighter(images)


@pytest.mark.parametrize("kept", [2, 4, 7])
def test_counts_survive_an_interruption_within_an_attack(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("_SAVE_INTERVAL", "_SNAPSHOT_INTERVAL"):
        monkeypatch.setattr(resume, interval, resume._Interval(0, torch.inf))
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"apgd-ce": apgd_ce.with_settings(restarts=3, steps=5)})
    model, eps = _Linear(_both), {"linf": 0.02, "l2": 0.1}
    whole = _evaluate(model, eps, batch_size=16, protocol="fast")
    options = Options("fast", "temper", seed=0, batch_size=16, state=EvaluationState(tmp_path / STATE_FILE))
    broken = iter_evaluate(model, _IMAGES, _LABELS, eps, options=options, subject="result")
    saves = options.state._save

    def counted(*arguments: object) -> None:
        saves(*arguments)  # type: ignore[arg-type]
        if options.state.saves == kept:
            raise KeyboardInterrupt

    options.state._save = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(broken)
    again = replace(options, state=EvaluationState(tmp_path / STATE_FILE))
    steps = iter_evaluate(model, _IMAGES, _LABELS, eps, options=again, subject="result")
    report = Returning(steps).finish()
    assert _counts(report) == _counts(whole)
    assert report.flags == whole.flags
    assert sum(map(sum, _counts(whole))) > 100


def test_shards_merge_to_the_counts_and_flags_of_the_whole() -> None:
    model, eps = _Linear(_both), {"linf": 0.02, "l1": 1.0}
    whole = _evaluate(model, eps, batch_size=10, protocol="fast")
    shards = []
    for index, part in enumerate((slice(0, 20), slice(20, 40)), start=1):
        options = Options("fast", "temper", seed=0, batch_size=10, part=Part(index=index, count=2, first=part.start))
        steps = iter_evaluate(model, _IMAGES[part], _LABELS[part], eps, options=options, subject="result")
        shards.append(Reports(before=None, after=Returning(steps).finish()))
    merged = merge(shards).after
    assert merged is not None
    assert _counts(merged) == _counts(whole)
    assert merged.flags == whole.flags
    assert {flag.code for flag in whole.flags} >= {"not_finite", "nan_gradients"}
    assert (merged.union, merged.robust, merged.clean) == (whole.union, whole.robust, whole.clean)
