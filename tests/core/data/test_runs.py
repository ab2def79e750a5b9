"""What a run says of a data set of one's own: files that are not read, doubts, held-out images, the draw."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from core.cli.console import event_lines
from core.data import Dataset
from core.evaluation.autoattack import run_evaluation
from core.inputs import Inputs
from core.schema.events import Event, Monitored, Started, Warned
from core.schema.report import Reports
from core.schema.spec import EvaluateSpec, FineTuneSpec, parse
from core.training.run import fine_tune
from tests.support.images import write

_SPEC = {
    "base_model": "digits-cnn-linf",
    "dataset": "mine",
    "eps": {"linf": 0.1, "l1": 1},
    "evaluation": {"protocol": "fast", "examples": 10, "include_base": False},
}


def _files(digits: Dataset) -> dict[str, bytes]:
    """Some digits as files; class 9 is rare, one picture has two labels, and three files are not read."""
    files = {}
    for part, counts, source in (("train", [6] * 9 + [1], digits.train), ("val", [2] * 10, digits.train)):
        for label, count in enumerate(counts):
            rows = source.read(
                (source.labels == label).nonzero().flatten()[-count:]
                if part == "val"
                else (source.labels == label).nonzero().flatten()[:count]
            )
            for number, pixels in enumerate(rows.pixels):
                content = io.BytesIO()
                Image.fromarray((pixels[0].numpy() * 15).astype(np.uint8)).save(content, "PNG")
                files[f"{part}/{label}/{number}.png"] = content.getvalue()
                if part == "train":
                    mirrored = io.BytesIO()
                    Image.fromarray((pixels[0].numpy()[::-1] * 15).astype(np.uint8)).save(mirrored, "PNG")
                    files[f"test/{label}/{number}.png"] = mirrored.getvalue()
    files["train/3/wrong.png"] = files["train/4/0.png"]
    return files | {"train/3/notes.txt": b"x", "train/3/.DS_Store": b"x", "labels.csv": b"x"}


def _doubts(events: list[Event]) -> list[str]:
    return [event.code for event in events if isinstance(event, Warned) and event.code.startswith("data_")]


def test_a_run_says_what_it_did_not_read_and_doubts(digits: Dataset, tmp_path: Path) -> None:
    path = write(_files(digits), tmp_path, "zip")
    spec = parse({**_SPEC, "epochs": 1, "batch_size": 32, "held_out": 12, "method": {"name": "e-at", "steps": 1}})
    assert isinstance(spec, FineTuneSpec)
    events = list(fine_tune(spec, tmp_path / "run", Inputs(data=path)))
    started = events[0]
    assert isinstance(started, Started)
    # The held-out images are those of val/: no training image is held out.
    assert (started.train_examples, started.held_out_examples, started.unread) == (56, 12, 3)
    assert [event.examples for event in events if isinstance(event, Monitored)] == [12]
    assert "3 files of the data are not read" in "\n".join(event_lines(started))
    assert _doubts(events) == ["data_conflicting_labels", "data_not_read"]
    warned = [event for event in events if isinstance(event, Warned)]
    assert "2 files of the data set are not read" in warned[1].message
    assert warned[0].remedy in "\n".join(event_lines(warned[0]))
    report = Reports.read((tmp_path / "run" / "report.json").read_bytes())
    assert report.run is not None
    assert (report.run.unread, report.run.spec.split) == (3, "stratified")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["run"]["held_out_examples"] == 12
    # An evaluation says the same, and its points have each class with its share.
    evaluated = parse({"kind": "evaluate", **_SPEC, "evaluation": {"protocol": "fast", "examples": 9}})
    assert isinstance(evaluated, EvaluateSpec)
    again = list(run_evaluation(evaluated, tmp_path / "evaluation", Inputs(data=path)))
    assert _doubts(again) == ["data_conflicting_labels", "data_not_read"]
    points = Reports.read((tmp_path / "evaluation" / "report.json").read_bytes()).after
    assert points is not None
    assert points.points is not None
    assert sorted(points.points.labels) == list(range(9))
