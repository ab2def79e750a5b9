"""Evaluations under threats that no training prepares for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.data import Dataset
from core.evaluation import evaluate, resume
from core.evaluation.autoattack import iter_evaluate, run_evaluation
from core.evaluation.report import merge
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.evaluation.search import Options
from core.evaluation.unseen import read_unseen
from core.inputs import Inputs
from core.schema.cost_model import Passes, passes_of_unseen
from core.schema.errors import BadInput
from core.schema.events import Attacked, Event, Finished, Saved
from core.schema.report import Report
from core.schema.spec import EvaluateSpec, parse
from core.schema.threats import SEVERITIES
from core.signals import Interrupted
from core.threats.corruptions import corrupt
from core.threats.pixels import PixelsThreat, sparse_pixels

_THREATS: list[Any] = [
    {"name": "l0", "budgets": [1, 3], "queries": 40},
    {"name": "patch", "budgets": [2], "queries": 40},
    {"name": "common/contrast", "budgets": [1, 5]},
]
_EPS = {"linf": 0.15}


def _spec(**evaluation: Any) -> EvaluateSpec:
    body = {
        "kind": "evaluate",
        "base_model": "digits-cnn-linf",
        "eps": _EPS,
        "evaluation": {"protocol": "fast", "examples": 30, "batch_size": 10, "unseen": _THREATS, **evaluation},
    }
    spec = parse(body)
    assert isinstance(spec, EvaluateSpec)
    return spec


def _run(spec: EvaluateSpec, folder: Path, **how: Any) -> tuple[list[Event], Report]:
    events = list(run_evaluation(spec, folder, **how))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reports.after is not None
    return events, last.reports.after


def _columns(report: Report) -> dict[str, str]:
    assert report.unseen is not None
    return {row.id: row.verdicts for row in report.unseen.rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Report]:
    """The events and the report of an evaluation that nothing interrupts."""
    return _run(_spec(), tmp_path_factory.mktemp("whole"))


def test_unseen_threats_leave_the_verdicts_of_the_norms_as_they_are(
    whole: tuple[list[Event], Report], tmp_path: Path
) -> None:
    without = _run(_spec(unseen=None), tmp_path)[1]
    assert without.unseen is None
    assert whole[1].verdicts == without.verdicts
    assert (whole[1].robust, whole[1].union) == (without.robust, without.union)


def test_progress_counts_the_attacks_of_the_norms_and_every_budget(whole: tuple[list[Event], Report]) -> None:
    attacked = [event for event in whole[0] if isinstance(event, Attacked)]
    assert [event.threat for event in attacked] == [
        "linf",
        "l0 1",
        "l0 3",
        "patch 2",
        "common/contrast 1",
        "common/contrast 5",
    ]
    assert [event.done for event in attacked] == list(range(1, 7))
    assert {event.total for event in attacked} == {6}
    columns = _columns(whole[1])
    assert [event.robust for event in attacked[1:]] == [columns[event.threat].count("1") for event in attacked[1:]]


def test_a_sweep_counts_what_any_budget_up_to_its_own_fools(
    whole: tuple[list[Event], Report], base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    columns = _columns(whole[1])
    images, labels = (points[:30] for points in test_digits)
    alone = {k: sparse_pixels(base, images, labels, PixelsThreat(k), queries=40).robust for k in (1, 3)}
    assert columns["l0 1"] == "".join("01"[right] for right in alone[1].tolist())
    assert columns["l0 3"] == "".join("01"[right] for right in (alone[1] & alone[3]).tolist())
    assert columns["l0 3"].count("0") > columns["l0 1"].count("0")


def test_corruptions_are_judged_on_all_points(
    whole: tuple[list[Event], Report], base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:30] for points in test_digits)
    with torch.no_grad():
        right = base.eval()(corrupt(images, "contrast", 5, seed=0)).argmax(1) == labels
    assert _columns(whole[1])["common/contrast 5"] == "".join("01"[each] for each in right.tolist())


def test_shards_merge_to_the_report_of_the_whole(whole: tuple[list[Event], Report], tmp_path: Path) -> None:
    shards = []
    for number in (1, 2):
        last = list(run_evaluation(_spec(), tmp_path / str(number), shard=(number, 2)))[-1]
        assert isinstance(last, Finished)
        shards.append(last.reports)
    merged = merge(shards).after
    assert merged is not None
    assert merged.unseen is not None
    assert whole[1].unseen is not None
    assert _columns(merged) == _columns(whole[1])
    assert (merged.unseen.average, merged.unseen.union) == (whole[1].unseen.average, whole[1].unseen.union)
    assert merged.unseen.common == whole[1].unseen.common


@pytest.mark.parametrize(("after", "steps"), [("linf", 5), ("l0 1", 5), ("patch 2", 1)])
def test_an_interrupted_evaluation_goes_on_within_a_threat(
    after: str, steps: int, whole: tuple[list[Event], Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("_SAVE_INTERVAL", "_SNAPSHOT_INTERVAL"):
        monkeypatch.setattr(resume, interval, resume._Interval(0, torch.inf))
    begun = run_evaluation(_spec(), tmp_path)
    while not (isinstance(event := next(begun), Attacked) and event.threat == after):
        pass
    # Some steps into the next threat: every step saves, and a snapshot is an event.
    for _ in range(steps):
        next(begun)
    begun.close()
    assert (tmp_path / STATE_FILE).exists()
    assert _columns(_run(_spec(), tmp_path)[1]) == _columns(whole[1])


def test_the_state_of_unseen_threats_is_not_taken_up(
    base: nn.Module, test_digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, labels = (points[:20] for points in test_digits)

    def steps(threats: list[Any]) -> Any:
        state = EvaluationState(tmp_path / STATE_FILE)
        options = Options("fast", "temper", seed=0, batch_size=10, unseen=read_unseen(threats), state=state)
        return iter_evaluate(base, images, labels, _EPS, options=options, subject="result")

    begun = steps([{"name": "l0", "budgets": [1], "queries": 5}])
    while not (isinstance(event := next(begun), Attacked) and event.threat == "l0 1"):
        pass
    begun.close()
    more = [{"name": "l0", "budgets": [1], "queries": 60}]
    *_, last = _returned(steps(more))
    alone = evaluate(base, images, labels, _EPS, protocol="fast", batch_size=10, unseen=more)
    assert _columns(last) == _columns(alone)


def _returned(steps: Any) -> Any:
    yield (yield from steps)


def test_the_flags_of_a_budget_are_those_of_its_own_search(
    whole: tuple[list[Event], Report], base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:60] for points in test_digits)
    threats = [{"name": "l0", "budgets": [1, 2], "queries": 10}]
    report = evaluate(base, images, labels, _EPS, protocol="fast", unseen=threats)
    assert report.unseen is not None
    smaller = sparse_pixels(base, images, labels, PixelsThreat(1), queries=10)
    standing = smaller.robust.nonzero().squeeze(1)
    larger = sparse_pixels(base, images[standing], labels[standing], PixelsThreat(2), queries=10)
    late = [int(found.late.sum()) for found in (smaller, larger)]
    assert late[0] > 0, "otherwise this shows nothing"
    assert [record.late for record in report.unseen.attacks] == late


def test_a_pause_among_corruptions_saves_what_is_known(
    tmp_path: Path, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:20] for points in test_digits)
    threats = read_unseen([{"name": "common/contrast", "budgets": [1, 5]}])
    state = EvaluationState(tmp_path / STATE_FILE, kind="state")
    options = Options("fast", "temper", seed=0, batch_size=10, unseen=threats, state=state)
    steps = iter_evaluate(base, images, labels, _EPS, options=options, subject="result")
    while not (isinstance(event := next(steps), Attacked) and event.threat == "common/contrast 1"):
        pass

    def interrupt(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise Interrupted

    signal = base.features.register_forward_pre_hook(interrupt)
    saved = next(steps)
    assert isinstance(saved, Saved)
    with pytest.raises(Interrupted):
        next(steps)
    signal.remove()


@pytest.mark.parametrize(
    ("threats", "told"),
    [
        ([{"name": "l0", "budgets": 64}], "64"),
        ([{"name": "patch", "budgets": 9}], "9"),
        ([{"name": "frame", "budgets": 4}], "4"),
    ],
)
def test_a_threat_that_makes_no_sense_for_the_images_is_refused_first(
    threats: list[Any], told: str, tmp_path: Path, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        next(run_evaluation(_spec(unseen=threats), tmp_path))
    assert caught.value.field == "evaluation.unseen"
    with pytest.raises(BadInput, match=told):
        evaluate(base, *test_digits, _EPS, protocol="fast", unseen=threats)


@pytest.mark.parametrize("asked", ["rmap", [], ["l00"], [{"name": "l0", "budgets": -1}], 3])
def test_the_library_refuses_what_is_no_threat(asked: Any, base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BadInput) as caught:
        evaluate(base, *test_digits, _EPS, protocol="fast", unseen=asked)
    assert caught.value.field == "evaluation.unseen"


@pytest.fixture
def official_files(digits: Dataset, tmp_path: Path) -> Path:
    """Files in the format of CIFAR-10-C, for the test part of the digits."""
    folder = tmp_path / "digits-c"
    folder.mkdir()
    images, labels = digits.test.first(len(digits.test)).images(), digits.test.labels
    np.save(folder / "labels.npy", labels.repeat(5).numpy().astype(np.uint8))
    for name in ("brightness", "contrast"):
        blocks = torch.cat([corrupt(images, name, severity, seed=0) for severity in SEVERITIES])
        np.save(folder / f"{name}.npy", (blocks * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return folder


def test_official_files_are_read_in_place_of_generated_images(
    official_files: Path, base: nn.Module, test_digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    spec = _spec(unseen=[{"name": "common/contrast", "budgets": [4]}])
    whole = _run(spec, tmp_path / "whole", inputs=Inputs(corruptions=official_files))[1]
    images, labels = (points[:30] for points in test_digits)
    rounded = (corrupt(images, "contrast", 4, seed=0) * 255).round() / 255
    with torch.no_grad():
        right = base.eval()(rounded).argmax(1) == labels
    assert _columns(whole)["common/contrast 4"] == "".join("01"[each] for each in right.tolist())
    assert whole.unseen is not None
    assert whole.unseen.common is not None
    assert whole.unseen.common.source == "files"
    shard = _run(spec, tmp_path / "shard", inputs=Inputs(corruptions=official_files), shard=(2, 3))[1]
    assert _columns(shard)["common/contrast 4"] == _columns(whole)["common/contrast 4"][10:20]


def test_verdicts_on_official_files_and_on_generated_images_are_not_mixed(official_files: Path, tmp_path: Path) -> None:
    """Of a resumed run, and of shards."""
    # Of these files only brightness shows the order.
    black = np.zeros_like(np.load(official_files / "contrast.npy"))
    np.save(official_files / "contrast.npy", black)
    spec, inputs = _spec(unseen=[{"name": "common/contrast", "budgets": [1, 2]}]), Inputs(corruptions=official_files)
    generated = _run(spec, tmp_path / "generated")[1]
    begun = run_evaluation(spec, tmp_path / "resumed", inputs)
    while not (isinstance(event := next(begun), Attacked) and event.threat == "common/contrast 1"):
        pass
    begun.close()
    resumed = _run(spec, tmp_path / "resumed")[1]
    assert _columns(resumed) == _columns(generated)
    shards = []
    for number, given in ((1, inputs), (2, Inputs())):
        last = list(run_evaluation(spec, tmp_path / str(number), given, shard=(number, 2)))[-1]
        assert isinstance(last, Finished)
        assert last.reports.after is not None
        shards.append(last.reports)
    assert _columns(shards[0].after) != _columns(generated)
    with pytest.raises(BadInput, match="parts of different evaluations"):
        merge(shards)


def test_official_files_in_another_order_or_unasked_are_refused(official_files: Path, tmp_path: Path) -> None:
    inputs = Inputs(corruptions=official_files)
    with pytest.raises(BadInput, match="asks for no common corruption"):
        next(run_evaluation(_spec(unseen=["l0"]), tmp_path, inputs))
    with pytest.raises(BadInput, match=r"lacks fog\.npy"):
        next(run_evaluation(_spec(unseen=["common/fog"]), tmp_path, inputs))
    labels = np.load(official_files / "labels.npy")
    np.save(official_files / "labels.npy", labels.reshape(5, -1)[:, ::-1].ravel())
    with pytest.raises(BadInput, match="label") as caught:
        next(run_evaluation(_spec(unseen=["common/contrast"]), tmp_path, inputs))
    assert caught.value.field == "corruptions"


def test_the_passes_of_a_point_that_nothing_fools_are_those_of_the_estimate() -> None:
    class Sure(nn.Module):
        """Always right, with a gradient."""

        def forward(self, images: Tensor) -> Tensor:
            nonlocal forward
            forward += len(images)
            logits = torch.stack([images.mean((1, 2, 3)) + 100, -images.mean((1, 2, 3))], 1)
            if logits.requires_grad:
                logits.register_hook(count_backward)
            return logits

    def count_backward(gradient: Tensor) -> None:
        nonlocal backward
        backward += len(gradient)

    threats = [
        *({"name": name, "budgets": [1, 2], "queries": 7} for name in ("l0", "patch", "frame")),
        *({"name": name, "budgets": [1, 2], "steps": 5} for name in ("fog", "snow", "gabor", "elastic", "jpeg")),
        {"name": "common/fog", "budgets": [1, 3]},
    ]
    counts = []
    for asked in (None, threats):
        forward = backward = 0
        images, labels = torch.rand(3, 3, 16, 16), torch.zeros(3, dtype=torch.long)
        report = evaluate(Sure(), images, labels, {"linf": 0.1}, protocol="fast", unseen=asked)
        counts.append(Passes(forward, backward))
    assert report.unseen is not None
    assert {row.accuracy.value for row in report.unseen.rows} == {1.0}
    known = passes_of_unseen(read_unseen(threats))
    more = Passes(counts[1].forward - counts[0].forward, counts[1].backward - counts[0].backward)
    # A move that is known to change nothing costs no pass.
    assert more.backward == 3 * known.backward
    assert 0.8 * 3 * known.forward <= more.forward <= 3 * known.forward


def test_a_report_with_unseen_threats_is_read_back(whole: tuple[list[Event], Report]) -> None:
    assert Report.model_validate(json.loads(whole[1].model_dump_json())) == whole[1]
