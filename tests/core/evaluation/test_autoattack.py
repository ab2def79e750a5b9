"""Robust accuracy: what counts, what is flagged, and whether it is AutoAttack's number."""

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Attack, Steps
from core.attacks.apgd import apgd_ce
from core.attacks.square import square
from core.evaluation import autoattack, resume, search
from core.evaluation.autoattack import attacks_of, evaluate, iter_evaluate, run_evaluation
from core.evaluation.report import merge
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.evaluation.search import Options
from core.inputs import Inputs, load
from core.schema.catalog import NORMS, Norm
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import Attacked, Event, Finished, Resumed, Saved
from core.schema.report import Report, Reports
from core.schema.spec import AnySpec, EvaluateSpec, parse
from core.signals import Interrupted
from tests.support.images import two_classes, write

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
        chain = [record for record in report.attacks if record.threat == norm]
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


def test_standard_runs_all_four_attacks(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:1] for points in test_digits)
    state = torch.get_rng_state()
    report = evaluate(base, images, labels, {"linf": 0.15}, protocol="standard")
    assert [record.attack for record in report.attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_reference_engine_is_pyautoattack_and_says_so(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:24] for points in test_digits)
    report = evaluate(base, images, labels, {"l1": 1.5}, protocol="fast", engine="reference")
    assert report.engine == "reference"
    assert report.verdicts == evaluate(base, images, labels, {"l1": 1.5}, protocol="fast").verdicts


def test_the_reference_engine_refuses_what_pyautoattack_cannot(test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = test_digits[0][:4], torch.zeros(4, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(BadInput, match="four classes") as caught:
        evaluate(model, images, labels, {"linf": 0.1}, engine="reference")
    assert caught.value.field == "evaluation.engine"


def test_a_run_that_the_reference_engine_could_not_judge_is_refused_before_it_trains(tmp_path: Path) -> None:
    two = Inputs(data=write(two_classes(), tmp_path, "folder"))

    def spec(protocol: str) -> AnySpec:
        given = {"kind": "train", "dataset": "two", "architecture": "preact-resnet-8", "method": "nat"}
        return parse({**given, "eps": {"linf": 0.1}, "evaluation": {"engine": "reference", "protocol": protocol}})

    with pytest.raises(BadInput, match="four classes"):
        load(spec("paper"), two)
    assert load(spec("fast"), two).blueprint.classes == 2


def test_what_is_computed_together_changes_no_verdict(
    monkeypatch: pytest.MonkeyPatch, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:20] for points in test_digits)
    together = evaluate(base, images, labels, _EPS, protocol="fast", batch_size=8)
    monkeypatch.setattr(search, "_GROUP_POINTS", 8)
    monkeypatch.setattr(search, "_CHUNK_SIZE", {"cpu": 5})
    apart = evaluate(base, images, labels, _EPS, protocol="fast", batch_size=8)
    assert together.verdicts == apart.verdicts


def test_a_batch_that_does_not_fit_is_computed_in_smaller_parts(
    monkeypatch: pytest.MonkeyPatch, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:40] for points in test_digits)
    expected = evaluate(base, images, labels, {"l2": 0.5}, protocol="fast")
    largest = []

    def small(module: nn.Module, inputs: tuple[Tensor]) -> None:
        # The clean images are looked at first, all at once; it is the attack that needs the memory.
        if torch.is_grad_enabled() and len(inputs[0]) > 16:
            raise torch.OutOfMemoryError
        largest.append(len(inputs[0]) if torch.is_grad_enabled() else 0)

    monkeypatch.setattr(search, "folded", lambda model, _: model)
    monkeypatch.setattr(search, "flags_of_model", lambda *_, **__: [])
    base.register_forward_pre_hook(small)
    monkeypatch.setattr(search, "_CHUNK_SIZE", {"cpu": 40})
    assert evaluate(base, images, labels, {"l2": 0.5}, protocol="fast").verdicts == expected.verdicts
    assert max(largest) <= 16


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")])
def test_looks_without_an_attack_are_made_as_many_at_once_as_fit_too(
    monkeypatch: pytest.MonkeyPatch, base: nn.Module, test_digits: tuple[Tensor, Tensor], error: RuntimeError
) -> None:
    images, labels = (points[:40] for points in test_digits)
    expected = evaluate(base, images, labels, {"l2": 0.5}, protocol="fast")
    largest = 0

    def small(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal largest
        if len(inputs[0]) > 16:
            raise error
        largest = max(largest, len(inputs[0]))

    base.register_forward_pre_hook(small)
    monkeypatch.setattr(search, "_CHUNK_SIZE", {"cpu": 40})
    assert evaluate(base, images, labels, {"l2": 0.5}, protocol="fast").verdicts == expected.verdicts
    assert largest == 10


def test_a_device_without_room_for_one_image_is_told_as_such(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:4] for points in test_digits)
    calls = 0

    def full(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal calls
        calls += 1
        raise torch.OutOfMemoryError

    signal = base.features.register_forward_pre_hook(full)
    with pytest.raises(OutOfMemory, match="one image at a time") as caught:
        evaluate(base, images, labels, {"l2": 0.5}, protocol="fast")
    assert "smaller network" in caught.value.hint
    signal.remove()


def test_the_reference_engine_is_not_asked_again_for_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:24] for points in test_digits)
    calls = 0

    @Attack
    def short(*arguments: object, **options: object) -> Steps:
        nonlocal calls
        calls += 1
        yield from ()
        raise torch.OutOfMemoryError

    monkeypatch.setattr(autoattack, "reference", short)
    with pytest.raises(OutOfMemory, match="pyautoattack on a logical batch of 10 points") as caught:
        evaluate(base, images, labels, {"l1": 1.5}, protocol="fast", engine="reference", batch_size=10)
    assert calls == 1
    assert caught.value.field == "evaluation.batch_size"
    assert "leave evaluation.engine at temper" in caught.value.hint


class _OnTheEdge(nn.Module):
    """Has one image right by so little that any move towards brighter is an error."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.edge = image.double().sum() + 1e-9

    def forward(self, images: Tensor) -> Tensor:
        over = images.double().flatten(1).sum(1) - self.edge
        return torch.stack([torch.zeros_like(over), over], 1).float()


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1e-6])
def test_a_radius_of_few_last_bits_of_a_pixel_is_evaluated_too(eps: float) -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    images, labels = image.expand(5, -1, -1, -1), torch.zeros(5, dtype=torch.long)
    report = evaluate(_OnTheEdge(image), images, labels, dict.fromkeys(NORMS, eps), protocol="fast")
    assert report.clean.count == 5
    assert report.robust["linf"].count == 0


def test_predictions_ids_and_labels_are_recorded_per_point(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:12] for points in test_digits)
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 10
    report = evaluate(base, images, labels, _EPS, protocol="fast", batch_size=5)
    points = report.points
    assert points is not None
    with torch.no_grad():
        clean = base(images).argmax(1)
    assert points.predicted["clean"] == tuple(clean.tolist())
    assert points.labels == tuple(labels.tolist())
    assert list(points.predicted) == ["clean", *NORMS]
    for row, predicted in points.predicted.items():
        right = [answer == label for answer, label in zip(predicted, points.labels, strict=True)]
        assert right == _bits(report.verdicts[row])
        assert predicted[0] == clean[0], "a point that is wrong without an attack is not attacked"
    assert points.predicted["l1"] != points.predicted["clean"]
    assert points.ids[3] == hashlib.sha256(images[3].numpy().tobytes()).hexdigest()[:16]
    assert len(set(points.ids)) == 12


def test_float32_is_float32_for_as_long_as_an_evaluation_runs(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    def kinds() -> tuple[str, str]:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]

    seen = set()
    base.register_forward_pre_hook(lambda *_: seen.add(kinds()))
    before, legacy = kinds(), torch.backends.cudnn.allow_tf32
    images, labels = (points[:4] for points in test_digits)
    evaluate(base, images, labels, {"l2": 0.5}, protocol="fast")
    assert seen == {("ieee", "ieee")}
    assert (kinds(), torch.backends.cudnn.allow_tf32) == (before, legacy)


def test_a_broken_evaluation_goes_on_where_it_was(
    tmp_path: Path, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:30] for points in test_digits)
    options = Options("fast", "temper", seed=0, batch_size=10, state=EvaluationState(tmp_path / STATE_FILE))
    whole = evaluate(base, images, labels, _EPS, protocol="fast", batch_size=10)
    broken = iter_evaluate(base, images, labels, _EPS, options=options, subject="result")
    attacked = [next(broken) for _ in range(2)]
    assert [each.threat for each in attacked if isinstance(each, Attacked)] == ["linf", "l2"]
    broken.close()

    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    base.features.register_forward_pre_hook(count)
    steps = list(_report(iter_evaluate(base, images, labels, _EPS, options=options, subject="result")))
    resumed = seen
    assert steps[-1].verdicts == whole.verdicts
    assert [record.attacked for record in steps[-1].attacks] == [record.attacked for record in whole.attacks]
    assert list(tmp_path.iterdir()) == []
    seen = 0
    list(_report(iter_evaluate(base, images, labels, _EPS, options=options, subject="result")))
    assert resumed < 0.6 * seen, "two of three norms were known"


def test_what_another_model_left_is_not_taken_up(
    tmp_path: Path, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:20] for points in test_digits)
    options = Options("fast", "temper", seed=0, batch_size=10, state=EvaluationState(tmp_path / STATE_FILE))
    broken = iter_evaluate(base, images, labels, {"linf": 0.15}, options=options, subject="result")
    next(broken)
    broken.close()
    with torch.no_grad():
        base.classifier.weight.neg_()
    expected = evaluate(base, images, labels, {"linf": 0.15}, protocol="fast", batch_size=10)
    *_, report = _report(iter_evaluate(base, images, labels, {"linf": 0.15}, options=options, subject="result"))
    assert report.verdicts == expected.verdicts


def _keep_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for interval in ("_SAVE_INTERVAL", "_SNAPSHOT_INTERVAL"):
        monkeypatch.setattr(resume, interval, resume._Interval(0, torch.inf))


def _report(steps: Generator[Event, None, Report]) -> Iterator[Report]:
    yield (yield from steps)  # type: ignore[misc]


def test_a_paused_evaluation_saves_its_verdicts_and_another_continues_from_them(
    tmp_path: Path, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:20] for points in test_digits)
    whole = evaluate(base, images, labels, _EPS, protocol="fast", batch_size=10)
    options = Options(
        "fast", "temper", seed=0, batch_size=10, state=EvaluationState(tmp_path / STATE_FILE, kind="state")
    )
    first = iter_evaluate(base, images, labels, _EPS, options=options, subject="result")
    assert isinstance(next(first), Attacked)

    def interrupt(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise Interrupted

    signal = base.features.register_forward_pre_hook(interrupt)
    saved = next(first)
    assert isinstance(saved, Saved)
    assert (saved.kind, saved.step) == ("state", 2), "what is right without an attack, and one attack"
    with pytest.raises(Interrupted):
        next(first)
    signal.remove()
    state = Path(saved.path)
    assert hashlib.sha256(state.read_bytes()).hexdigest() == saved.sha256
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    state.rename(elsewhere / state.name)
    there = replace(options, state=EvaluationState(elsewhere / STATE_FILE, kind="state"))
    resumed, *_, report = _report(iter_evaluate(base, images, labels, _EPS, options=there, subject="result"))
    assert resumed == Resumed(step=2, epoch=0)
    assert report.verdicts == whole.verdicts
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("norm", NORMS)
def test_an_evaluation_that_is_broken_off_within_an_attack_goes_on_within_it(
    norm: Norm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:30] for points in test_digits)
    eps = {norm: 1.5 * _EPS[norm]}
    attacks = {"apgd-ce": apgd_ce.with_settings(restarts=3, steps=8), "square": square.with_settings(queries=60)}
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: attacks)
    _keep_everything(monkeypatch)
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    base.features.register_forward_pre_hook(count)

    def evaluation_in(folder: Path) -> Generator[Event, None, Report]:
        folder.mkdir(exist_ok=True)
        options = Options(
            "standard", "temper", seed=0, batch_size=10, state=EvaluationState(folder / STATE_FILE, kind="state")
        )
        return iter_evaluate(base, images, labels, eps, options=options, subject="result")

    look = search.Search._predict

    def without_the_images_themselves(one: search.Search, images: Tensor) -> Tensor:
        assert images is not one._images, "another device might say otherwise"
        return look(one, images)

    *events, whole = _report(evaluation_in(tmp_path / "whole"))
    saved = [event.step for event in events if isinstance(event, Saved)]
    assert len(saved) > 40, "after each run and each query"
    assert 0 < whole.robust[norm].count < 30
    passes, seen = seen, 0
    for at in (2, 3, saved[-1] // 3, saved[-1] // 2, saved[-1] - 5):
        folder = tmp_path / str(at)
        steps = evaluation_in(folder)
        for event in steps:
            if isinstance(event, Saved) and event.step == at:
                break
        steps.close()
        seen = 0
        with monkeypatch.context() as patch:
            patch.setattr(search.Search, "_predict", without_the_images_themselves)
            resumed, *_, report = _report(evaluation_in(folder))
        assert resumed == Resumed(step=at, epoch=0)
        assert report.verdicts == whole.verdicts
        assert [record.robust for record in report.attacks] == [record.robust for record in whole.attacks]
        assert seen < passes
        assert list(folder.iterdir()) == []
    assert seen < passes / 3, "only the last queries were left"


def test_an_attack_out_of_memory_continues_in_smaller_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:30] for points in test_digits)
    monkeypatch.setattr(autoattack, "attacks_of", lambda *_: {"square": square.with_settings(queries=60)})
    monkeypatch.setattr(search, "_CHUNK_SIZE", {"cpu": 40})
    expected = evaluate(base, images, labels, {"linf": 0.2}, protocol="standard", batch_size=10)
    _keep_everything(monkeypatch)
    kept = EvaluationState(tmp_path / STATE_FILE)
    asked: list[int] = []

    def short(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if kept.saves > 30 and len(inputs[0]) > 10:
            raise torch.OutOfMemoryError
        if kept.saves > 30:
            asked.append(len(inputs[0]))

    base.features.register_forward_pre_hook(short)
    options = Options("standard", "temper", seed=0, batch_size=10, state=kept)
    *_, report = _report(iter_evaluate(base, images, labels, {"linf": 0.2}, options=options, subject="result"))
    assert report.verdicts == expected.verdicts
    assert asked
    assert max(asked) <= 10
    assert kept.saves <= 1 + 60 + 1, "no query was made twice"


def test_states_of_an_evaluation_come_now_and_then_and_two_of_them_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"kind": "evaluate", "base_model": "digits-cnn-linf", "evaluation": {"protocol": "fast", "examples": 8}}
    spec = parse(body)
    assert isinstance(spec, EvaluateSpec)
    often, seldom = (tmp_path / name for name in ("often", "seldom"))
    assert not [event for event in run_evaluation(spec, seldom) if isinstance(event, Saved) and event.kind == "state"]
    _keep_everything(monkeypatch)
    steps = []
    for event in run_evaluation(spec, often):
        if isinstance(event, Saved) and event.kind == "state":
            steps.append(event.step)
            there = sorted(path.name for path in often.glob("verdicts-*"))
            assert there == [f"verdicts-{step:06}.safetensors" for step in steps[-2:]]
    assert steps == [2, 3, 4, 5, 6, 7], "after the one run of each norm's attack, and after the attack"
    assert [path.name for path in often.iterdir()] == ["report.json"]


def test_shards_merge_to_the_very_report_of_the_whole(tmp_path: Path) -> None:
    body = {"kind": "evaluate", "base_model": "digits-cnn-linf"}
    spec = parse({**body, "evaluation": {"protocol": "fast", "examples": 70, "batch_size": 16}})
    assert isinstance(spec, EvaluateSpec)
    reports = []
    for number in (2, 3, 1):
        *_, finished = run_evaluation(spec, tmp_path / str(number), shard=(number, 3))
        assert isinstance(finished, Finished)
        reports.append(Reports.model_validate_json((tmp_path / str(number) / "report.json").read_bytes()))
    *_, finished = run_evaluation(spec, tmp_path / "whole")
    assert isinstance(finished, Finished)
    merged, whole = merge(reports).after, finished.reports.after
    assert merged is not None
    assert whole is not None
    assert _without_times(merged) == _without_times(whole)
    assert [report.after.part.first for report in reports if report.after and report.after.part] == [16, 48, 0]


def test_shards_merge_across_devices_but_not_across_releases(tmp_path: Path) -> None:
    body = {"kind": "evaluate", "base_model": "digits-cnn-linf", "eps": {"linf": 0.1}}
    spec = parse({**body, "evaluation": {"protocol": "fast", "examples": 8, "batch_size": 4}})
    assert isinstance(spec, EvaluateSpec)
    list(run_evaluation(spec, tmp_path / "1", shard=(1, 2)))
    list(run_evaluation(spec, tmp_path / "2", shard=(2, 2)))
    one, two = (Reports.model_validate_json((tmp_path / name / "report.json").read_bytes()) for name in "12")

    def elsewhere(**versions: str) -> Reports:
        assert two.run is not None
        run = two.run.model_copy(update={"device": "cuda", "versions": two.run.versions | versions})
        return two.model_copy(update={"run": run})

    assert one.run is not None
    release = one.run.versions["torch"].partition("+")[0]
    assert merge([one, elsewhere(cuda="13.0", torch=f"{release}+cu130", python="3.13.0")]).after
    with pytest.raises(BadInput, match="different evaluations") as caught:
        merge([one, elsewhere(torch="2.0.0")])
    assert "release of torch" in caught.value.hint


def _without_times(report: Report) -> Report:
    attacks = tuple(record.model_copy(update={"seconds": 0.0}) for record in report.attacks)
    return report.model_copy(update={"seconds": 0.0, "attacks": attacks})


def test_more_shards_than_logical_batches_are_refused(tmp_path: Path) -> None:
    spec = parse({"kind": "evaluate", "base_model": "digits-cnn-linf", "evaluation": {"examples": 70}})
    assert isinstance(spec, EvaluateSpec)
    with pytest.raises(BadInput, match="2 shards") as caught:
        list(run_evaluation(spec, tmp_path, shard=(1, 2)))
    assert caught.value.field == "shard"
