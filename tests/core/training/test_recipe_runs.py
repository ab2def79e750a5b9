"""Runs with everything that a recipe may ask for: they resume with the same bits, and deliver what they say."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core import checkpoint
from core.cli.console import event_lines
from core.evaluation.rates import rate
from core.schema.errors import BadInput
from core.schema.events import Entered, Event, Finished, Monitored, MonitoredAverage, Saved, Warned
from core.schema.progress import Weights
from core.schema.report import Reports
from core.schema.spec import FineTuneSpec, parse
from core.training import run as training
from core.training.run import fine_tune

_BODY = {
    "base_model": "digits-cnn-linf",
    "epochs": 2,
    "eps": {"linf": 0.15, "l1": 1.5},
    "train_examples": 100,
    "held_out": 10,
    "batch_size": 30,
    "method": {"name": "e-at", "steps": 2},
    "augmentation": "crop-flip",
    "evaluation": {"protocol": "fast", "examples": 2, "include_base": False},
    "save_minutes": 0.0,
}
"""Six steps in two epochs, each of them saved."""
_ALL_ON = {
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "schedule": "cosine",
    "warmup": 0.2,
    "clip_grad_norm": 0.5,
    "label_smoothing": 0.1,
    "average": {"decay": 0.6},
    "awp": {"strength": 0.01, "start_epoch": 1},
}


def _spec(**change: object) -> FineTuneSpec:
    spec = parse({**_BODY, **change})
    assert isinstance(spec, FineTuneSpec)
    return spec


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("deliver", ["last", "best"])
def test_a_run_with_every_option_that_is_cut_off_ends_with_the_same_bits(deliver: str, tmp_path: Path) -> None:
    spec = _spec(**_ALL_ON, deliver=deliver)
    whole = list(fine_tune(spec, tmp_path / "whole"))
    cuts = ["state", "state", "evaluating"]
    for cut in cuts:
        for event in fine_tune(spec, tmp_path / "cut"):
            # The second cut is within the epoch that AWP begins with, the third after the last step.
            if cut == "state" and isinstance(event, Saved) and event.kind == "state" and event.step in (2, 4):
                break
            if cut == "evaluating" and isinstance(event, Entered) and event.phase == "evaluating":
                break
    resumed = list(fine_tune(spec, tmp_path / "cut"))
    one, other = (load_file(tmp_path / folder / "checkpoint.safetensors") for folder in ("whole", "cut"))
    assert _same(one, other)
    last, last_resumed = whole[-1], resumed[-1]
    assert isinstance(last, Finished)
    assert isinstance(last_resumed, Finished)
    assert last.reports.delivered == last_resumed.reports.delivered


Unions = list[tuple[int, int]]


def _monitored_as(unions: Unions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say after each epoch how many of ten held-out images the raw and the averaged weights get right."""
    scripted = iter(unions)

    def monitor(*_: object, step: int, epoch: float, **__: object) -> Monitored:
        raw, averaged = (rate(count, 10) for count in next(scripted))
        return Monitored(
            step=step,
            epoch=epoch,
            examples=10,
            robust={"linf": raw.value, "l1": raw.value},
            training_attack={"linf": raw.value, "l1": raw.value},
            union=raw,
            averaged=MonitoredAverage(robust={"linf": averaged.value, "l1": averaged.value}, union=averaged),
            seconds=0.1,
        )

    monkeypatch.setattr(training, "monitor", monitor)


def _states(events: Iterator[Event]) -> tuple[dict[int, dict[str, Tensor]], Finished]:
    """Follow a run to its end, and keep what its state files hold, by step."""
    states = {}
    for event in events:
        if isinstance(event, Saved) and event.kind == "state":
            states[event.step] = load_file(event.path)
    assert isinstance(event, Finished)
    return states, event


@pytest.mark.parametrize(
    ("deliver", "unions", "step", "weights", "count"),
    [
        ("last", [(9, 3), (4, 4)], 6, "averaged", 4),
        ("last", [(1, 9), (4, 3)], 6, "raw", 4),
        ("best", [(9, 3), (4, 4)], 3, "raw", 9),
        ("best", [(1, 9), (4, 3)], 3, "averaged", 9),
        ("best", [(4, 4), (4, 1)], 6, "raw", 4),
    ],
)
def test_a_run_delivers_the_weights_that_the_held_out_images_choose(
    deliver: str,
    unions: Unions,
    step: int,
    weights: Weights,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _monitored_as(unions, monkeypatch)
    spec = _spec(method="nat", average={"decay": 0.6}, deliver=deliver)
    states, finished = _states(fine_tune(spec, tmp_path))
    delivered = finished.reports.delivered
    assert delivered is not None
    assert (delivered.step, delivered.weights) == (step, weights)
    assert delivered.held_out is not None
    assert delivered.held_out.count == count
    model, header = checkpoint.load(tmp_path / "checkpoint.safetensors")
    part = "average" if weights == "averaged" else "model"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, states[step][f"{part}/{name}"])
    assert (header.step, header.weights) == (step, weights)
    assert header.reports is not None
    assert header.reports.delivered == delivered
    assert Reports.read((tmp_path / "report.json").read_bytes()).delivered == delivered
    said = f"delivered: the {'averaged ' if weights == 'averaged' else ''}weights after step {step}"
    assert said in list(event_lines(finished))


def test_both_weights_are_monitored_after_each_epoch(tmp_path: Path) -> None:
    events = list(fine_tune(_spec(average={"decay": 0.6}), tmp_path))
    monitored = [event for event in events if isinstance(event, Monitored)]
    assert [event.step for event in monitored] == [3, 6]
    for event in monitored:
        assert event.averaged is not None
        assert event.averaged.robust.keys() == event.robust.keys()
        assert event.averaged.union.total == event.examples == 10
    lines = list(event_lines(monitored[0]))
    assert lines[0].startswith("  held out: linf ")
    assert lines[1].startswith("  averaged: linf ")


@pytest.mark.parametrize("held_out", [0, None])
def test_without_held_out_images_the_average_is_delivered_and_the_run_says_so(
    held_out: int | None, tmp_path: Path
) -> None:
    # Of 19 images none is held out by default.
    spec = _spec(method="nat", held_out=held_out, train_examples=19, average={"decay": 0.6}, batch_size=4)
    states, finished = _states(fine_tune(spec, tmp_path))
    delivered = finished.reports.delivered
    assert delivered is not None
    assert (delivered.weights, delivered.step, delivered.held_out) == ("averaged", 10, None)
    assert "average_not_compared" in [warning.code for warning in finished.reports.warnings]
    weights = load_file(tmp_path / "checkpoint.safetensors")
    assert torch.equal(weights["classifier.weight"], states[10]["average/classifier.weight"])


def test_without_an_average_the_last_weights_are_delivered_as_ever(tmp_path: Path) -> None:
    states, finished = _states(fine_tune(_spec(), tmp_path))
    assert finished.reports.delivered is not None
    assert finished.reports.delivered.text == "the weights after step 6"
    weights = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(value, states[6][f"model/{name}"]) for name, value in weights.items())


def test_best_is_refused_where_no_image_is_held_out(tmp_path: Path) -> None:
    spec = _spec(held_out=None, train_examples=19, deliver="best")
    with pytest.raises(BadInput, match="none is held out") as caught:
        next(fine_tune(spec, tmp_path))
    assert caught.value.field == "deliver"
    assert "held_out" in caught.value.hint


def test_a_run_whose_best_weights_are_lost_delivers_the_last_and_says_so(tmp_path: Path) -> None:
    spec = _spec(method="nat", deliver="best")
    for event in fine_tune(spec, tmp_path):
        if isinstance(event, Entered) and event.phase == "evaluating":
            break
    (tmp_path / "best.safetensors").unlink()
    events = list(fine_tune(spec, tmp_path))
    assert "best_weights_lost" in [event.code for event in events if isinstance(event, Warned)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.reports.delivered is not None
    assert (finished.reports.delivered.step, finished.reports.delivered.weights) == (6, "raw")


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    list(islice(_until_saved(fine_tune(_spec(), tmp_path)), 50))
    with pytest.raises(BadInput, match="differs in average"):
        list(fine_tune(_spec(average={}), tmp_path))


def _until_saved(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if isinstance(event, Saved) and event.step > 0:
            return
