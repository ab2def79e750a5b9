"""fine_tune(): its loss curve, its events, its files."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core import checkpoint
from core.cli.console import event_lines
from core.schema.errors import BadInput, Diverged
from core.schema.events import Attacked, Entered, Event, Finished, Saved, Started, Stepped, Warned
from core.schema.report import Provenance, Reports
from core.schema.spec import FineTuneSpec, TrainSpec, parse
from core.training import run as training
from core.training.run import fine_tune

_GOLDEN = Path(__file__).parents[1] / "golden" / "e_at_digits.json"
_QUICK = {
    "base_model": "digits-cnn-linf",
    "epochs": 1,
    "train_examples": 128,
    "evaluation": {"protocol": "fast", "examples": 20},
}


def _spec(**change: object) -> FineTuneSpec:
    spec = parse({**_QUICK, **change})
    assert isinstance(spec, FineTuneSpec)
    return spec


def _steps(events: list[Event]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


@pytest.mark.usefixtures("double_precision")
def test_the_first_twenty_losses_and_norms_are_those_on_record(tmp_path: Path) -> None:
    spec = _spec(train_examples=None, held_out=0, evaluation={"protocol": "fast", "examples": 1, "include_base": False})
    steps = []
    for event in fine_tune(spec, tmp_path):
        if isinstance(event, Stepped):
            steps.append(event)
        if len(steps) == 20:
            break
    golden = json.loads(_GOLDEN.read_text())
    assert [step.norm for step in steps] == golden["norms"]
    assert [step.loss for step in steps] == pytest.approx(golden["losses"], rel=5e-5)


def test_a_run_yields_its_events_in_order(tmp_path: Path) -> None:
    events = list(fine_tune(_spec(), tmp_path))
    told = [event.type for event in events if not isinstance(event, Stepped | Entered | Saved | Attacked)]
    assert told == ["started", "evaluated", "monitored", "evaluated", "finished"]
    saved = [(event.kind, event.step) for event in events if isinstance(event, Saved)]
    assert saved == [("state", 0), ("best", 2), ("state", 2), ("checkpoint", 2), ("report", 2)]
    phases = [(event.phase, event.subject) for event in events if isinstance(event, Entered)]
    assert phases == [("evaluating", "base"), ("training", None), ("evaluating", "result"), ("publishing", None)]
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert [step.step for step in _steps(events)] == [1, 2]
    assert started.total_steps == 2
    assert _steps(events)[-1].epoch == 1
    assert finished.reports.before is not None
    assert finished.reports.after is not None


def test_a_run_evaluates_unseen_threats_before_and_after_and_keeps_them_in_its_files(tmp_path: Path) -> None:
    threats = [{"name": "l0", "budgets": [1, 2], "queries": 5}, {"name": "common/contrast", "budgets": [5]}]
    asked = {**_QUICK["evaluation"], "unseen": threats}
    with pytest.raises(BadInput, match="l0 may change 64 pixels"):
        next(fine_tune(_spec(evaluation={**asked, "unseen": [{"name": "l0", "budgets": [64]}]}), tmp_path))
    finished = list(fine_tune(_spec(evaluation=asked), tmp_path))[-1]
    assert isinstance(finished, Finished)
    _, header = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert header.reports == finished.reports
    for report in (finished.reports.before, finished.reports.after):
        assert report is not None
        assert report.unseen is not None
        assert [row.id for row in report.unseen.rows] == ["l0 1", "l0 2", "common/contrast 5"]
        assert list(report.robust) == list(report.eps)
    text = "\n".join(event_lines(finished))
    assert "l0 2" in text
    assert "union of attacks" in text


def test_the_same_spec_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    def weights(seed: int, folder: str) -> dict[str, Tensor]:
        spec = _spec(seed=seed, evaluation={"protocol": "fast", "examples": 1, "include_base": False})
        list(fine_tune(spec, tmp_path / folder))
        return checkpoint.load(tmp_path / folder / "checkpoint.safetensors")[0].state_dict()

    first, again, other = weights(0, "a"), weights(0, "b"), weights(1, "c")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    quick = {key: value for key, value in _QUICK.items() if key != "base_model"}
    spec = parse({**quick, "kind": "train", "architecture": "digits-cnn", "dataset": "digits"})
    assert isinstance(spec, TrainSpec)
    list(fine_tune(spec, tmp_path))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_is_in_float32_without_tf32_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convolves_in() -> str:
        return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]

    seen, take = set(), training.Trainer.take_step
    monkeypatch.setattr(training.Trainer, "take_step", lambda *its: seen.add(convolves_in()) or take(*its))
    before = convolves_in()
    started, *_ = fine_tune(_spec(evaluation={**_QUICK["evaluation"], "include_base": False}), tmp_path)
    assert isinstance(started, Started)
    assert started.precision == "fp32"
    assert seen == {"ieee"}
    assert convolves_in() == before


def test_stopping_the_iteration_frees_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    load = training.load
    monkeypatch.setattr(training, "load", lambda *args: models.append(weakref.ref((it := load(*args)).model)) or it)
    run = fine_tune(_spec(evaluation={**_QUICK["evaluation"], "include_base": False}), tmp_path)
    assert any(isinstance(event, Stepped) for event in run)
    run.close()
    gc.collect()
    assert models[0]() is None
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_becomes_nan_or_infinite_ends_the_run_as_diverged(tmp_path: Path) -> None:
    spec = _spec(learning_rate=10, weight_decay=1, epochs=40, schedule="constant", method="nat", save_minutes=0.0)
    with pytest.raises(Diverged, match="the last good state, of step") as caught:
        list(fine_tune(spec, tmp_path))
    assert caught.value.field == "learning_rate"
    newest = max(tmp_path.glob("state-*"))
    assert str(newest) in caught.value.message
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(newest).values())


def test_the_checkpoint_explains_itself(tmp_path: Path) -> None:
    spec = _spec()
    events = list(fine_tune(spec, tmp_path))
    model, header = checkpoint.load(tmp_path / "checkpoint.safetensors")
    saved = next(event for event in events if isinstance(event, Saved) and event.kind == "checkpoint")
    assert saved.sha256 == checkpoint.hash_file(tmp_path / "checkpoint.safetensors")
    assert header.spec == spec
    assert header.seed == spec.seed
    assert header.reports == events[-1].reports  # type: ignore[union-attr]
    assert header.base_sha256 == checkpoint.hash_file(checkpoint.base_model_file("digits-cnn-linf", None))
    assert len(header.data_sha256) == 64
    assert header.versions["torch"]
    assert not model.training
    written = Reports.model_validate_json((tmp_path / "report.json").read_bytes())
    started = events[0].model_dump(exclude={"type"})
    assert written.run == Provenance(**started)
    assert written.model_copy(update={"run": None}) == header.reports


def test_a_subset_is_drawn_once_with_the_seed(digits) -> None:  # type: ignore[no-untyped-def]
    first, again, other = (training._training_part(_spec(seed=seed), digits.train) for seed in (0, 0, 1))
    assert len(first) == 128
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


def test_a_result_that_is_about_to_be_replaced_is_named(tmp_path: Path) -> None:
    spec = _spec(train_examples=32, evaluation={"protocol": "fast", "examples": 5, "include_base": False})
    codes = [[event.code for event in fine_tune(spec, tmp_path) if isinstance(event, Warned)] for _ in range(2)]
    assert codes[0] == []
    assert codes[1] == ["overwrites"]


def test_what_a_run_doubts_stands_in_its_report_and_checkpoint(tmp_path: Path) -> None:
    asked = {"protocol": "fast", "examples": 5, "include_base": False}
    spec = _spec(train_examples=32, learning_rate=0.2, eps={"linf": 0.1, "l2": 1.0, "l1": 3.0}, evaluation=asked)
    told = [event for event in fine_tune(spec, tmp_path) if isinstance(event, Warned)]
    assert [event.code for event in told] == ["preflight_learning_rate"]
    reports = Reports.read((tmp_path / "report.json").read_bytes())
    codes = [warning.code for warning in reports.warnings]
    assert codes == ["eps_differs_from_base", "few_steps", "l2_not_covered", "preflight_learning_rate"]
    assert reports.warnings[-1].text == told[0].text
    assert "set learning_rate, such as to 0.01" in told[0].text
    header = checkpoint.read_header(tmp_path / "checkpoint.safetensors")
    assert header.reports
    assert header.reports.warnings == reports.warnings


def test_a_resumed_run_has_the_warnings_of_its_first_part(tmp_path: Path) -> None:
    asked = {"protocol": "fast", "examples": 5}
    spec = _spec(train_examples=32, learning_rate=0.2, evaluation=asked)
    run = fine_tune(spec, tmp_path)
    # The state after the evaluation of the base model is saved; the checks of the base model are not run again.
    assert any(isinstance(event, Saved) and event.kind == "state" for event in run)
    run.close()  # type: ignore[attr-defined]
    assert [event.code for event in fine_tune(spec, tmp_path) if isinstance(event, Warned)] == []
    reports = Reports.read((tmp_path / "report.json").read_bytes())
    assert [warning.code for warning in reports.warnings][-1] == "preflight_learning_rate"
