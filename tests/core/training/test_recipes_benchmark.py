"""The benchmark of recipes goes on where it was cut off, never mixes settings, and says what helps."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import recipes

_SMALL = ["recipes", "--points", "4", "--train-examples", "40"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Put known numbers in the place of runs, and list the runs that were asked for."""
    asked: list[tuple[str, int]] = []

    def run(setting: recipes.Setting, inputs: object, cell: str, seed: int) -> recipes.Run:
        asked.append((cell, seed))
        union = {"plain": 0.50, "average": 0.53, "awp": 0.505, "both": 0.49}[cell.split()[1]] + 0.1 * seed
        passes = recipes.count_passes(setting.spec_of(cell, seed))
        seconds = 2.0 if "plain" in cell else 3.0
        delivered = "averaged" if cell.split()[1] in ("average", "both") else "raw"
        return recipes.Run(1.0, dict.fromkeys(setting.eps, union), union, union, delivered, seconds, passes)

    monkeypatch.setattr(recipes, "run", run)
    return asked


def _start(monkeypatch: pytest.MonkeyPatch, output: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", [*_SMALL, *options, "--output", str(output)])
    recipes.main()


def test_a_second_start_runs_only_what_is_missing(
    started: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "recipes.json"
    _start(monkeypatch, output, "--only", "e-at plain,e-at awp", "--seeds", "1")
    assert started == [("e-at plain", 0), ("e-at awp", 0)]
    started.clear()
    _start(monkeypatch, output)
    assert len(started) == 2 * len(recipes.CELLS) - 2
    whole = output.read_text()
    table = output.with_suffix(".md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| e-at | average |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:8] == ["e-at", "average", "100.0 ± 0.0", *["58.0 ± 7.1"] * 5]
    assert cells[9:] == ["1.50", "2 of 2"]
    assert "e-at average: union +3.0 points" in table
    assert "(aim: at most 1.05); it helps." in table
    assert "it helps by less than a point." in table
    assert "it does not help." in table
    assert table.splitlines()[-1] in capsys.readouterr().out

    started.clear()
    cut = json.loads(whole)
    del cut["runs"]["ramp both"]["1"]
    output.write_text(json.dumps(cut))
    _start(monkeypatch, output)
    assert started == [("ramp both", 1)]
    assert json.loads(output.read_text()) == json.loads(whole)


@pytest.mark.usefixtures("started")
def test_other_settings_and_unknown_cells_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "recipes.json"
    _start(monkeypatch, output, "--only", "ramp plain")
    with pytest.raises(SystemExit, match="other settings"):
        _start(monkeypatch, output, "--points", "5")
    with pytest.raises(SystemExit):
        _start(monkeypatch, output, "--only", "e-at")


def test_a_cell_is_a_run_of_its_own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "METHODS", ("e-at",))
    monkeypatch.setattr(
        recipes,
        "RECIPES",
        {"plain": {}, "both": {"average": {}, "awp": {}, "epochs": 1, "method": {"name": "e-at", "steps": 1}}},
    )
    output = tmp_path / "recipes.json"
    _start(monkeypatch, output, "--only", "e-at both", "--seeds", "1")
    (found,) = json.loads(output.read_text())["runs"]["e-at both"].values()
    assert 0 <= found["union"] <= found["clean"] <= 1
    assert found["cpu_seconds"] > 0
    assert found["delivered"] in ("raw", "averaged")
