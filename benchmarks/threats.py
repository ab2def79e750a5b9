"""Evaluate models that were trained in ten ways under threats that none of them was trained for: the last table of the
E-AT paper, with settings of our own.

    python -m benchmarks.threats                      the digits, 2 seeds, 100 test points
    python -m benchmarks.threats --cifar ARCHIVE      the small network on CIFAR-10 (JPEG): 10,000 images, 100 points

NAT is trained from random weights without attack, linf is the shipped base; all others are that base, fine-tuned by a
method for the epochs of the paper. The threats on CIFAR-10 are those of the preset `--preset`; images of 8 x 8 need
smaller budgets, which the page states. What is done is written after each model, and a second start continues.

It also prints the time and the passes of each threat, and says whether training for several norms helps most against
threats that no training prepares for, as the paper reports.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from benchmarks.methods import RESULTS, spread
from core import checkpoint
from core.data.draws import read_test_points
from core.evaluation.autoattack import evaluate
from core.evaluation.unseen import read_unseen
from core.inputs import Inputs, load
from core.schema.catalog import DATASETS
from core.schema.report import Report
from core.schema.spec import parse
from core.schema.unseen import Unseen
from core.training.run import fine_tune

_DIGITS = [
    "corruptions",
    {"name": "l0", "budgets": [1, 2, 3], "queries": 500},
    {"name": "patch", "budgets": [2], "queries": 500},
    {"name": "frame", "budgets": [1], "queries": 500},
    {"name": "fog", "budgets": [128], "steps": 40},
    {"name": "snow", "budgets": [4], "steps": 40},
    {"name": "gabor", "budgets": [120], "steps": 40},
    {"name": "elastic", "budgets": [0.25], "steps": 40},
    {"name": "jpeg", "budgets": [0.5], "steps": 40},
]
"""Threats for images of 8 x 8, on which those of the presets leave nothing robust."""

MODELS: Mapping[str, Any] = {
    "NAT": None,
    "linf": None,
    "l2": {"name": "single", "norms": ["l2"]},
    "l1": {"name": "single", "norms": ["l1"]},
    "PAT": "pat",
    "SAT": "sat",
    "AVG": "avg",
    "MAX": "max",
    "MSD": "msd",
    "E-AT": "e-at",
}
"""The ten models of the table, each with its method."""
_SINGLE = ("NAT", "linf", "l2", "l1", "PAT")


@dataclass(frozen=True)
class Setting:
    """Everything that decides the numbers."""

    base: str
    dataset: str
    train_examples: int | None
    natural_epochs: int
    points: int
    seeds: int
    unseen: dict[str, Any]

    def body(self, seed: int, **fields: Any) -> dict[str, Any]:
        """Write down the part of a spec that all runs share."""
        entry = DATASETS["digits" if self.dataset == "digits" else "cifar10"]
        return {
            "dataset": self.dataset,
            "split": "uniform",
            "eps": dict(entry.eps),
            "batch_size": entry.batch_size,
            "augmentation": entry.augmentation,
            "train_examples": self.train_examples,
            "seed": seed,
            "evaluation": {"protocol": "fast", "examples": 1, "include_base": False},
            **fields,
        }


@dataclass
class Row:
    """One model from one seed; accuracies as shares."""

    clean: float
    norms: float
    """Union of the three norms, protocol fast."""
    common: float | None
    attacks: dict[str, float]
    average: float
    union: float
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Report) -> "Row":
        """Take what the table shows from a report."""
        found = report.unseen
        assert found is not None
        assert found.average is not None
        assert found.union is not None
        return cls(
            clean=report.clean.value,
            norms=report.union.value,
            common=found.common.mean if found.common else None,
            attacks={row.id: row.accuracy.value for row in found.attack_rows},
            average=found.average,
            union=found.union.value,
            seconds={record.threat: round(record.seconds, 1) for record in found.attacks},
        )


def train(setting: Setting, inputs: Inputs, name: str, seed: int, folder: Path) -> nn.Module:
    """Train one of the models from one seed."""
    if name == "linf":
        path = checkpoint.base_model_file(setting.base, inputs.weights)
        return checkpoint.load(path)[0]
    if name == "NAT":
        architecture = checkpoint.load(checkpoint.base_model_file(setting.base, inputs.weights))[
            1
        ].blueprint.architecture
        body = setting.body(seed, kind="train", architecture=architecture, method="nat", epochs=setting.natural_epochs)
        inputs = Inputs(data=inputs.data)
    else:
        body = setting.body(seed, base_model=setting.base, method=MODELS[name], epochs=3, learning_rate=0.05)
    spec = parse(body)
    for _ in fine_tune(spec, folder, inputs):  # type: ignore[arg-type]
        pass
    return checkpoint.load(folder / "checkpoint.safetensors")[0]


def measure(setting: Setting, inputs: Inputs, name: str, seed: int) -> Row:
    """Train one model and evaluate it."""
    with tempfile.TemporaryDirectory() as folder:
        model = train(setting, inputs, name, seed, Path(folder))
    loaded = load(parse(setting.body(seed, base_model=setting.base)), inputs)
    points = read_test_points(loaded.dataset.test, setting.points, "uniform").to(loaded.device)
    model = model.to(loaded.device).to(memory_format=torch.channels_last)
    asked = Unseen.model_validate(setting.unseen)
    report = evaluate(model, points.images(), points.labels, loaded.spec.eps, protocol="fast", seed=seed, unseen=asked)
    return Row.of(report)


def description(setting: Setting, rows: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    """Say what the table is about, and what it shows."""
    asked = Unseen.model_validate(setting.unseen)
    count = setting.train_examples
    images = "all training images" if count is None else f"{count:,} training images"
    yield (
        f"`{setting.base}` on {images}, {setting.points} test points, seeds: {setting.seeds}; accuracy in per cent, "
        "mean and deviation. common: mean over the 15 common corruptions and 5 severities, generated. average, union: "
        "over the attacks, each at its largest budget. norms: union of linf, l2 and l1 by the protocol `fast`."
    )
    yield ""
    threats = (threat for threat in asked.threats if not threat.name.startswith("common/"))
    yield (
        "Threats: "
        + "; ".join(
            f"{threat.name} {', '.join(f'{budget:g}' for budget in threat.budgets)} "
            f"({f'{threat.queries} queries' if threat.queries else f'{threat.steps} steps'})"
            for threat in threats
        )
        + "."
    )
    if asked.provenance:
        yield f"\n{asked.provenance}"
    if set(rows) == set(MODELS):
        yield f"\n{_finding(rows)}"


def _finding(rows: Mapping[str, Mapping[str, Row]]) -> str:
    """Say whether the models that were trained for several norms lead."""

    def best(names: Iterator[str], what: str) -> tuple[str, float]:
        means = {name: mean(getattr(row, what) for row in rows[name].values()) for name in names}
        winner = max(means, key=lambda name: means[name])
        return winner, 100 * means[winner]

    parts = []
    for what in ("average", "union"):
        single = best(iter(_SINGLE), what)
        several = best((name for name in MODELS if name not in _SINGLE), what)
        parts.append(
            f"{what}: the best model for several norms is {several[0]} with {several[1]:.1f}, the best other "
            f"{single[0]} with {single[1]:.1f}"
        )
    return (
        "The paper reports that training for several norms helps most against unseen attacks. Here: "
        + "; ".join(parts)
        + "."
    )


def table(rows: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    """Lay out a row for each model."""
    first = next(iter(next(iter(rows.values())).values()))
    heads = ("model", "clean", "common", *first.attacks, "average", "union", "norms")
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, by_seed in rows.items():
        found = list(by_seed.values())
        cells = [
            [row.clean for row in found],
            [row.common for row in found if row.common is not None],
            *([row.attacks[threat] for row in found] for threat in first.attacks),
            [row.average for row in found],
            [row.union for row in found],
            [row.norms for row in found],
        ]
        spreads = (spread([100 * share for share in shares]) for shares in cells)
        yield f"| {' | '.join([name, *spreads])} |"


def speeds(rows: Mapping[str, Mapping[str, Row]], points: int) -> Iterator[str]:
    """Lay out how fast each threat was, over all models."""
    yield "| threat | points a second |"
    yield "|---|---|"
    every = [row for by_seed in rows.values() for row in by_seed.values()]
    for threat in every[0].seconds:
        seconds = sum(row.seconds[threat] for row in every)
        yield f"| {threat} | {points * len(every) / max(seconds, 0.1):.1f} |"


def main() -> None:
    """Measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="ARCHIVE", help="CIFAR-10 as JPEGs in folders")
    parser.add_argument("--points", type=int, default=100, help="test points")
    parser.add_argument("--seeds", type=int, help="by default 2, and 1 with --cifar")
    parser.add_argument("--train-examples", type=int, help="training images; by default all, and 10,000 with --cifar")
    parser.add_argument("--preset", default="fast", help="the threats on CIFAR-10; by default fast")
    parser.add_argument("--only", help="these models alone, with commas between them")
    parser.add_argument("--output", type=Path, help="the JSON file; by default in benchmarks/results")
    options = parser.parse_args()
    asked = read_unseen(options.preset if options.cifar else _DIGITS)
    assert asked is not None
    setting = Setting(
        base="cifar10-small-linf" if options.cifar else "digits-cnn-linf",
        dataset="cifar10-jpeg" if options.cifar else "digits",
        train_examples=options.train_examples or (10_000 if options.cifar else None),
        natural_epochs=15 if options.cifar else 30,
        points=options.points,
        seeds=options.seeds or (1 if options.cifar else 2),
        unseen=asked.model_dump(mode="json"),
    )
    path = options.output or RESULTS / f"threats-{'cifar10' if options.cifar else 'digits'}.json"
    rows = _read(path, setting)
    chosen = options.only.split(",") if options.only else list(MODELS)
    for seed in range(setting.seeds):
        for name in chosen:
            if str(seed) in rows.get(name, {}):
                continue
            begun = time.monotonic()
            row = measure(setting, Inputs(data=options.cifar), name, seed)
            rows.setdefault(name, {})[str(seed)] = row
            _write(path, setting, rows)
            seconds = time.monotonic() - begun
            print(f"{name}, seed {seed}: average {100 * row.average:.1f}, {seconds:.0f} s", flush=True)
    print("\n".join(table(rows)))


def _read(path: Path, setting: Setting) -> dict[str, dict[str, Row]]:
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if stored["setting"] != asdict(setting):
        raise SystemExit(f"{path} holds results of other settings: move it away, or name another --output")
    return {name: {seed: Row(**row) for seed, row in rows.items()} for name, rows in stored["rows"].items()}


def _write(path: Path, setting: Setting, rows: Mapping[str, Mapping[str, Row]]) -> None:
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), **checkpoint.versions()}
    stored = {name: {seed: asdict(row) for seed, row in by_seed.items()} for name, by_seed in rows.items()}
    content = {"machine": machine, "commit": checkpoint.commit(), "setting": asdict(setting), "rows": stored}
    path.write_text(json.dumps(content, indent=1) + "\n")
    title = "# Threats that no training prepares for: " + (
        "the digits" if "digits" in setting.base else "CIFAR-10 (JPEG)"
    )
    lines = [title, "", *description(setting, rows), "", *table(rows), "", *speeds(rows, setting.points)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
