"""A run that was cut off and goes on ends with the same bits as one that was not."""

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import checkpoint
from core.evaluation import resume
from core.schema.errors import BadInput
from core.schema.events import Entered, Event, Finished, Paused, Resumed, Saved, Stepped, read
from core.schema.exit_status import ExitStatus
from core.schema.spec import FineTuneSpec, parse
from core.signals import StopRequests
from core.training.run import fine_tune
from tests.support.forked import Forked

_SPEC = {
    "base_model": "digits-cnn-linf",
    "epochs": 2,
    "eps": {"linf": 0.15, "l1": 1.5},
    "train_examples": 100,
    "held_out": 10,
    "batch_size": 30,
    "method": {"name": "e-at", "steps": 2},
    "schedule": "one-cycle",
    "augmentation": "crop-flip",
    "evaluation": {"protocol": "fast", "examples": 2},
    "save_minutes": 0.0,
}
"""Six steps in two epochs, each of them saved."""


def _spec(**change: object) -> FineTuneSpec:
    spec = parse({**_SPEC, **change})
    assert isinstance(spec, FineTuneSpec)
    return spec


def _weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder / "checkpoint.safetensors")[0].state_dict()


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Event]]:
    """The weights and the story of the run that nothing befell."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    events = list(fine_tune(_spec(), folder))
    return _weights(folder), events


Whole = tuple[dict[str, Tensor], list[Event]]


def _told(events: list[Event]) -> list[tuple[int, str | None, float]]:
    return [(event.step, event.norm, event.loss) for event in events if isinstance(event, Stepped)]


@pytest.mark.parametrize(("kind", "count"), [("stepped", 2), ("state", 1)])
def test_a_run_cut_off_again_and_again_ends_with_the_same_bits(
    kind: str, count: int, uninterrupted: Whole, tmp_path: Path
) -> None:
    told: dict[int, tuple[int, str | None, float]] = {}
    events: list[Event] = []
    calls = 0
    while not events or not isinstance(events[-1], Finished):
        calls += 1
        assert calls < 20
        events = []
        for event in fine_tune(_spec(), tmp_path):
            events.append(event)
            # A step is told before its state is saved: after one step alone, nothing would be won.
            if [getattr(each, "kind", each.type) for each in events].count(kind) == count:
                break
        told |= {step[0]: step for step in _told(events)}
    assert calls > 4
    assert _same(_weights(tmp_path), uninterrupted[0])
    assert list(told.values()) == _told(uninterrupted[1])


def test_a_run_goes_on_in_the_middle_of_an_epoch_without_doing_anything_twice(
    uninterrupted: Whole, tmp_path: Path
) -> None:
    first = list(_until(fine_tune(_spec(), tmp_path), step=2))
    then = list(fine_tune(_spec(), tmp_path))
    assert (_told(first) + _told(then)) == _told(uninterrupted[1])
    assert Resumed(step=2, epoch=2 / 3) in then
    phases = [(event.phase, event.subject) for event in then if isinstance(event, Entered)]
    assert phases == [("training", None), ("evaluating", "result"), ("publishing", None)]
    before, of_whole = (events[-1].reports.before for events in (then, uninterrupted[1]))  # type: ignore[union-attr]
    assert before.verdicts == of_whole.verdicts  # type: ignore[union-attr]


def _until(run: Iterator[Event], *, step: int) -> Iterator[Event]:
    """Follow a run until the state of a step is saved, then drop it."""
    for event in run:
        yield event
        if isinstance(event, Saved) and event.kind == "state" and event.step == step:
            return


@pytest.mark.parametrize("subject", ["base", "result"])
def test_the_evaluations_of_a_run_go_on_elsewhere_from_what_they_have_found(
    subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("_SAVE_INTERVAL", "_SNAPSHOT_INTERVAL"):
        monkeypatch.setattr(resume, interval, resume._Interval(0, torch.inf))
    spec = _spec(epochs=1)

    def run(folder: Path) -> Iterator[tuple[str | None, Event]]:
        evaluating = None
        for event in fine_tune(spec, folder):
            evaluating = event.subject if isinstance(event, Entered) else evaluating
            yield evaluating, event

    def kept(told: list[tuple[str | None, Event]]) -> list[int]:
        saved = [(about, event) for about, event in told if isinstance(event, Saved) and event.kind == "verdicts"]
        return [event.step for about, event in saved if about == subject]

    here, there, whole = (tmp_path / name for name in ("here", "there", "whole"))
    told = list(run(whole))
    assert not list(whole.glob("verdicts*"))
    until = kept(told)[1]
    for about, event in run(here):
        if about == subject and isinstance(event, Saved) and event.step == until:
            break
    there.mkdir()
    assert isinstance(event, Saved)
    for path in (Path(event.path), *here.glob("state-*"), *here.glob("best*")):
        path.rename(there / path.name)
    resumed = list(run(there))
    assert kept(resumed) == [step for step in kept(told) if step > until]
    first, again = (events[-1][1] for events in (told, resumed))
    assert isinstance(first, Finished)
    assert isinstance(again, Finished)
    for mine, its in ((first.reports.before, again.reports.before), (first.reports.after, again.reports.after)):
        assert mine
        assert its
        assert mine.verdicts == its.verdicts
    assert _same(_weights(whole), _weights(there))
    assert not list(there.glob("verdicts*"))


def test_two_states_are_kept_and_none_when_the_run_is_over(tmp_path: Path) -> None:
    run = fine_tune(_spec(), tmp_path)
    list(_until(run, step=4))
    assert sorted(path.name for path in tmp_path.glob("state*")) == [
        "state-000000003.safetensors",
        "state-000000004.safetensors",
    ]
    list(fine_tune(_spec(), tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "report.json",
    ]


def test_a_damaged_state_is_passed_over_for_the_one_before_it(uninterrupted: Whole, tmp_path: Path) -> None:
    list(_until(fine_tune(_spec(), tmp_path), step=4))
    newest = tmp_path / "state-000000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    again = list(fine_tune(_spec(), tmp_path))
    assert Resumed(step=3, epoch=1.0) in again
    assert _same(_weights(tmp_path), uninterrupted[0])


def test_another_runs_state_is_refused_with_what_differs_and_can_be_given_up(tmp_path: Path) -> None:
    list(_until(fine_tune(_spec(), tmp_path), step=1))
    other = _spec(learning_rate=0.02, seed=3)
    with pytest.raises(BadInput, match="differs in seed, learning_rate") as caught:
        list(fine_tune(other, tmp_path))
    assert "--restart" in caught.value.hint
    assert (tmp_path / "state-000000001.safetensors").exists()
    anew = list(islice(fine_tune(other, tmp_path, restart=True), 3))
    assert not any(isinstance(event, Resumed) for event in anew)


def test_a_new_name_is_no_other_run(tmp_path: Path) -> None:
    list(_until(fine_tune(_spec(), tmp_path), step=1))
    renamed = fine_tune(_spec(name="renamed", metadata={"a": "b"}, save_minutes=5.0), tmp_path)
    assert Resumed(step=1, epoch=1 / 3) in list(islice(renamed, 2))


def test_without_a_state_that_can_be_read_the_run_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state-000000004.safetensors").write_bytes(b"nothing of use")
    with pytest.raises(BadInput, match="no state") as caught:
        list(fine_tune(_spec(), tmp_path))
    assert "--restart" in caught.value.hint


def test_a_pause_comes_after_the_step_with_its_state_saved(uninterrupted: Whole, tmp_path: Path) -> None:
    requests, events = StopRequests(), []
    # No state is due before the pause.
    for event in fine_tune(_spec(save_minutes=60.0), tmp_path, requests=requests):
        events.append(event)
        requests.pause = bool(_told(events))
    *_, saved, paused = events
    assert isinstance(saved, Saved)
    assert (saved.kind, saved.step) == ("state", 2)
    assert paused == Paused(step=2, epoch=2 / 3)
    list(fine_tune(_spec(save_minutes=60.0), tmp_path))
    assert _same(_weights(tmp_path), uninterrupted[0])


def test_a_stopped_run_delivers_the_best_weights_and_says_where_it_was_stopped(tmp_path: Path) -> None:
    requests = StopRequests()
    # So large a step that the weights of the second epoch are worse than those of the first.
    spec = _spec(learning_rate=5.0, schedule="constant", epochs=3, method="nat")
    steps = 0
    best: bytes = b""
    for event in fine_tune(spec, tmp_path, requests=requests):
        steps += isinstance(event, Stepped)
        requests.stop = steps >= 4
        if isinstance(event, Saved) and event.kind == "best":
            best = (tmp_path / "best.safetensors").read_bytes()
            best_step = event.step
    model, header = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert (header.step, header.stopped_at) == (best_step, 5)
    (tmp_path / "best.safetensors").write_bytes(best)
    assert _same(model.state_dict(), checkpoint.load(tmp_path / "best.safetensors")[0].state_dict())
    assert header.reports is not None


def test_a_stop_that_was_cut_off_is_still_a_stop(tmp_path: Path) -> None:
    requests = StopRequests(stop=True)
    for event in fine_tune(_spec(), tmp_path, requests=requests):
        if isinstance(event, Entered) and event.phase == "evaluating" and event.subject == "result":
            break
    events = list(fine_tune(_spec(), tmp_path))
    assert _told(events) == []
    assert checkpoint.read_header(tmp_path / "checkpoint.safetensors").stopped_at == 1


def _run_until(step: int, number: signal.Signals, folder: Path, *options: str) -> tuple[int, list[Event]]:
    """Start `python -m core finetune` in a folder, and send it a signal when it has told a step: status and events."""
    (folder / "spec.json").write_text(_spec().model_dump_json())
    command = ["-m", "core", "finetune", "spec.json", "--json", "--output", "out", "--device", "cpu", *options]
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    reading, writing = os.pipe()
    with os.fdopen(reading) as lines, (folder / "errors").open("wb") as errors:
        process = Forked(command, cwd=folder, env=environment, output=writing, errors=errors)
        os.close(writing)
        events = []
        for line in lines:
            events.append(read(line))
            if isinstance(events[-1], Stepped) and events[-1].step == step:
                process.send_signal(number)
        return process.wait(), events


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_process_that_was_killed_goes_on_with_the_same_command(
    number: signal.Signals, uninterrupted: Whole, tmp_path: Path
) -> None:
    status, events = _run_until(2, number, tmp_path)
    if number == signal.SIGTERM:
        assert status == ExitStatus.PAUSED == 75
        assert isinstance(events[-1], Paused)
    else:
        assert status == -signal.SIGKILL
    then = list(fine_tune(_spec(), tmp_path / "out"))
    assert any(isinstance(event, Resumed) for event in then)
    assert _same(_weights(tmp_path / "out"), uninterrupted[0])


def test_a_process_that_gets_sigusr1_delivers_what_it_has(tmp_path: Path) -> None:
    status, events = _run_until(2, signal.SIGUSR1, tmp_path, "--epochs", "1000")
    assert status == 0
    assert isinstance(events[-1], Finished)
    stopped = checkpoint.read_header(tmp_path / "out" / "checkpoint.safetensors").stopped_at
    assert stopped is not None
    assert 2 <= stopped < 3000
