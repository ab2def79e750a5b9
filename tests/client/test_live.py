"""What --watch shows while a job runs."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from client import Temper
from client.display import live
from tests.support.scripted_service import Script, job_json

PROGRESS = {
    "step": 30, "total_steps": 60, "epoch": 1.5, "loss": 0.5, "learning_rate": 0.05, "norm": "l1",
    "counts": {"linf": {"seen": 100, "robust": 80}, "l1": {"seen": 100, "robust": 40}}, "subject": None,
    "attack": None, "threat": None, "attacks_done": 0, "attacks_total": 0, "fraction": 0.5,
    "seconds_remaining": 62.0,
}  # fmt: skip
ATTACKED = {"subject": "result", "threat": "l1", "attack": "apgd-t", "robust": 7, "examples": 10, "done": 1, "total": 2}
HISTORY: list[tuple[str, dict[str, Any]]] = [
    ("job.created", {}),
    ("entered", {"phase": "training", "subject": None}),
    ("progress", PROGRESS),
    ("warned", {"code": "slow", "message": "the disk is slow"}),
    ("entered", {"phase": "evaluating", "subject": "result"}),
    ("attacked", ATTACKED),
    ("job.recovered", {"attempt": 1}),
    ("entered", {"phase": "publishing", "subject": None}),
    ("job.succeeded", {"attempt": 2}),
]


def stream() -> str:
    parts = []
    for seq, (kind, data) in enumerate(HISTORY, 1):
        stamped = {"seq": seq, "created_at": "2026-11-23T00:00:00Z", "type": kind, "data": data}
        head = "" if kind == "progress" else f"id: {seq}\n"
        parts.append(f"event: {kind}\n{head}data: {json.dumps(data if kind == 'progress' else stamped)}\n\n")
    return "".join(parts) + "event: end\ndata: {}\n\n"


@pytest.fixture
def history(script: Script) -> None:
    script.expect(
        lambda request: request.stream(stream()),
        lambda request: request.answer(job_json(status="succeeded", is_terminal=True)),
    )


def test_terminal_shows_phase_step_norm_and_attacks(temper: Temper, history: None) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    live.watch(temper, "job_1", screen)
    assert temper.jobs.get("job_1").status == "succeeded"
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for text in (
        "60/60 steps",
        "0:01:02 left",
        "the disk is slow",
        "2/2 attacks",
        "apgd-t on l1: 7 of 10 right",
        "waiting for another worker",
    ):
        assert text in shown, text
    assert "left" not in shown.rpartition("60/60 steps")[2].partition("\n")[0]


def test_file_gets_a_line_for_each_event_and_none_twice(temper: Temper, history: None) -> None:
    file = Console(file=io.StringIO(), width=200)
    live.watch(temper, "job_1", file)
    lines = file.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == len(HISTORY)
    assert lines[2].startswith("training 30 of 60 steps, epoch 1.50, loss 0.500, attacked l1, robust error linf 20 %")
