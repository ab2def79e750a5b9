"""The benchmark of the methods goes on where it was cut off, never mixes settings, and counts right."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods

_SMALL = ["methods", "--points", "4", "--seeds", "2", "--train-examples", "16"]
_SINGLES = ("single linf", "single l2", "single l1")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Put known numbers in the place of runs, and list the runs that were asked for."""
    asked: list[tuple[Any, int]] = []

    def run(setting: methods.Setting, inputs: object, method: Any, seed: int) -> methods.Run:
        asked.append((method, seed))
        union = 0.25 if method == "base" else 0.5 + 0.1 * seed
        return methods.Run(1.0, dict.fromkeys(setting.eps, union), union, union, None if method == "base" else 2.5)

    monkeypatch.setattr(methods, "run", run)
    monkeypatch.setattr(methods, "measure_base", lambda setting, inputs, seed: run(setting, inputs, "base", seed))
    monkeypatch.setattr(methods, "_ROUNDS", 1)
    return asked


def test_a_second_start_does_only_what_is_missing(
    started: list[tuple[Any, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "methods.json"
    monkeypatch.setattr(sys, "argv", [*_SMALL, "--output", str(output)])
    methods.main()
    assert len(started) == 2 * (1 + len(methods.METHODS))
    whole = json.loads(output.read_text())
    costs = whole["costs"]
    assert costs["avg"]["forward"] == 3 * costs["single l1"]["forward"] == 36
    assert sum(costs[f"single {norm}"]["relative"] for norm in ("linf", "l2", "l1")) == pytest.approx(3)
    table = output.with_suffix(".md").read_text()
    assert (
        "| ramp | 100.0 ± 0.0 | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 | 2.5 ± 0.0 |" in table
    )
    assert "Least lift of the union by a multi-norm method: 30.0 points" in table
    assert table.splitlines()[-1] in capsys.readouterr().out

    started.clear()
    cut = json.loads(output.read_text())
    del cut["runs"]["avg"]["1"]
    output.write_text(json.dumps(cut))
    methods.main()
    assert started == [("avg", 1)]
    assert json.loads(output.read_text()) == whole


@pytest.mark.usefixtures("started")
def test_results_of_other_settings_are_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "methods.json"
    monkeypatch.setattr(methods, "METHODS", {name: methods.METHODS[name] for name in ("nat", *_SINGLES)})
    monkeypatch.setattr(sys, "argv", [*_SMALL, "--output", str(output)])
    methods.main()
    monkeypatch.setattr(sys, "argv", [*_SMALL[:-1], "8", "--output", str(output)])
    with pytest.raises(SystemExit, match="other settings"):
        methods.main()
