"""What an evaluation under way keeps, for whom, and how often."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.checkpoint import write_file
from core.evaluation import resume
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.schema.errors import DiskFull

_PREDICTED = torch.tensor([3, 12])


def test_what_was_found_is_there_for_the_same_evaluation_and_for_no_other(tmp_path: Path) -> None:
    kept = EvaluationState(tmp_path / STATE_FILE)
    assert not kept.begin(lambda: "one")
    kept.put({"linf/apgd-ce/0": _PREDICTED})
    kept.put_attack("linf/square/0", {"best": torch.ones(3)})
    again, other = EvaluationState(tmp_path / STATE_FILE), EvaluationState(tmp_path / STATE_FILE)
    assert again.begin(lambda: "one")
    found, state = again.get("linf/apgd-ce/0"), again.get_attack("linf/square/0")
    assert found is not None
    assert state is not None
    assert torch.equal(found, _PREDICTED)
    assert torch.equal(state["best"], torch.ones(3))
    assert again.get_attack("l2/square/0") is None
    assert (again.saves, again.get("l2/apgd-ce/0")) == (2, None)
    assert not other.begin(lambda: "another")
    assert (other.saves, other.get("linf/apgd-ce/0")) == (0, None)


@pytest.mark.parametrize("path", [None, STATE_FILE])
def test_one_evaluation_after_the_other_begins_with_nothing_but_a_higher_number(
    path: str | None, tmp_path: Path
) -> None:
    kept = EvaluationState(tmp_path / path if path else None)
    kept.begin(lambda: "one")
    kept.put({"linf/apgd-ce/0": _PREDICTED})
    kept.close()
    assert not kept.begin(lambda: "another")
    assert kept.get("linf/apgd-ce/0") is None
    assert kept.saves == 1


def test_a_copy_stays_as_it_is_while_more_is_found_and_the_last_two_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "_SNAPSHOT_INTERVAL", resume._Interval(0, torch.inf))
    foreign = tmp_path / "verdicts-000009.safetensors"
    foreign.write_bytes(b"of an evaluation that cannot be read")
    kept = EvaluationState(tmp_path / STATE_FILE, kind="state")
    kept.begin(lambda: "one")
    saved = []
    for number in range(4):
        kept.put({f"linf/apgd-ce/{number}": _PREDICTED})
        saved += kept.snapshot()
        assert not list(kept.snapshot()), "nothing is new"
    assert [each.step for each in saved] == [1, 2, 3, 4]
    assert [Path(each.path).exists() for each in saved] == [False, False, True, True]
    for each in saved[2:]:
        content = Path(each.path).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (each.sha256, each.size)
    assert foreign.exists(), "what could not be read this time might be another time"
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_large_states_are_written_seldom_and_copied_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    kept = EvaluationState(tmp_path / STATE_FILE, kind="state")
    kept.begin(lambda: "one")
    due, copied = [], []
    for size in (10, 10_000_000):
        kept.put_attack("linf/square/0", {"best": torch.zeros(size // 4)})
        list(kept.snapshot(now=True))
        begin = now
        while len(due) == len(copied):
            now += 1
            due += [now - begin] if kept.is_due else []
        kept.put_attack("linf/square/0", {"best": torch.zeros(size // 4)})
        while not list(kept.snapshot()):
            now += 1
        copied.append(now - begin)
    assert (due, copied) == ([10, 11], [60, 101])


def test_a_state_that_does_not_fit_the_disk_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly_full(write: Callable[[Path, bytes], str]) -> Callable[[Path, bytes], str]:
        def tried(path: Path, content: bytes) -> str:
            if len(content) > 10_000:
                raise DiskFull("full", hint="make room")
            return write(path, content)

        return tried

    monkeypatch.setattr(resume, "write_file", nearly_full(write_file))
    kept = EvaluationState(tmp_path / STATE_FILE)
    kept.begin(lambda: "one")
    kept.put({"linf/apgd-ce/0": _PREDICTED})
    kept.put_attack("linf/square/0", {"best": torch.zeros(100_000)})
    again = EvaluationState(tmp_path / STATE_FILE)
    assert again.begin(lambda: "one")
    assert again.get("linf/apgd-ce/0") is not None
    assert again.get_attack("linf/square/0") is None
