"""Fine-tune one base model by E-AT and RAMP: plain, with averaged weights, with perturbed weights (AWP), and with both.

    python -m benchmarks.recipes                      the digits base, 2 seeds, 300 test points
    python -m benchmarks.recipes --cifar ARCHIVE      the small base for CIFAR-10 (JPEG): 10,000 images, 500 test points

Every cell is a run as a user would start it, 3 epochs and the protocol `paper`. What is done is written after each run,
and a second start goes on from there. --points, --seeds, --train-examples and --only make it smaller; give --output
then, for it is not the whole.

Accuracies are in per cent, mean and deviation over the seeds. The cost is that of the training, with the attacks on the
held-out images after each epoch and without the evaluation at the end, relative to the plain recipe of the method:
"passes" as `core.schema.cost_model` counts them, an upper bound for the held-out images; "time" in CPU seconds as the
runs took them, one after the other.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.methods import RESULTS, Tuning, replace_file, spread
from core import checkpoint
from core.inputs import Inputs
from core.schema.catalog import ARCHITECTURES, DATASETS, MODELS, Norm
from core.schema.cost_model import Size, passes_of_evaluation, passes_of_run
from core.schema.events import Entered, Finished
from core.schema.spec import FineTuneSpec
from core.training.run import fine_tune

RECIPES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "average": {"average": {}},
    "awp": {"awp": {}},
    "both": {"average": {}, "awp": {}},
}
METHODS = ("e-at", "ramp")
CELLS = tuple(f"{method} {recipe}" for method in METHODS for recipe in RECIPES)
AIMS = {"average": 1.05, "awp": 1.35}
"""The most that a recipe should cost, relative to the plain one."""


@dataclass(frozen=True, kw_only=True)
class Setting(Tuning):
    """Everything that decides the numbers."""

    recipes: dict[str, dict[str, Any]]

    def spec_of(self, cell: str, seed: int) -> FineTuneSpec:
        """Write down the run of one method and recipe, from one seed."""
        method, recipe = cell.split()
        return self.spec(method, seed, **self.recipes[recipe])


@dataclass(frozen=True)
class Run:
    """One method and recipe from one seed; accuracies as shares."""

    clean: float
    robust: dict[Norm, float]
    average: float
    union: float
    delivered: str
    """Whether the raw or the averaged weights were delivered."""
    cpu_seconds: float
    """CPU time of the training, attacks on the held-out images included."""
    passes: float
    """Passes of the training, as the cost model counts them."""


Runs = dict[str, dict[str, Run]]
"""Per method and recipe, per seed."""


def run(setting: Setting, inputs: Inputs, cell: str, seed: int) -> Run:
    """Fine-tune by one method and recipe, and evaluate."""
    spec = setting.spec_of(cell, seed)
    begun = ended = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for event in fine_tune(spec, Path(folder), inputs):
            if isinstance(event, Entered) and event.phase == "training":
                begun = time.process_time()
            elif isinstance(event, Entered) and event.phase == "evaluating":
                ended = time.process_time()
    assert isinstance(event, Finished)
    report, delivered = event.reports.after, event.reports.delivered
    assert report is not None
    assert delivered is not None
    return Run(
        clean=report.clean.value,
        robust={norm: report.robust[norm].value for norm in setting.eps},
        average=report.average,
        union=report.union.value,
        delivered=delivered.weights,
        cpu_seconds=ended - begun,
        passes=count_passes(spec),
    )


def count_passes(spec: FineTuneSpec) -> float:
    """Count the passes of the training, without the evaluation at the end."""
    size = Size.of("digits" if spec.dataset == "digits" else "cifar10")
    assert size is not None
    points = min(spec.evaluation.examples, size.test_examples)
    evaluation = passes_of_evaluation(spec, points, classes=size.classes)
    return passes_of_run(spec, size).total - evaluation.total


def description(setting: Setting, runs: Runs) -> Iterator[str]:
    """Say what the table is about, and how it compares with what was hoped for."""
    eps = ", ".join(f"{norm} {radius:.4g}" for norm, radius in setting.eps.items())
    count = setting.train_examples
    images = "all training images" if count is None else f"{count:,} training images"
    seeds = max((len(by_seed) for by_seed in runs.values()), default=0)
    yield f"`{setting.base}` fine-tuned for {setting.epochs} epochs on {images}; {eps}. `paper` protocol on"
    yield f"{setting.points} test points, up to {seeds} seeds: per cent, mean and deviation. passes, time: cost of the"
    yield "training relative to the plain recipe, counted and in CPU seconds. averaged: runs that delivered the"
    yield "averaged weights."
    yield from (f"\n{line}" for line in verdicts(runs))


def verdicts(runs: Runs) -> Iterator[str]:
    """Say of each recipe by how much it changes the union, and what it costs."""
    for method in METHODS:
        plain = runs.get(f"{method} plain")
        for recipe in RECIPES:
            found = runs.get(f"{method} {recipe}")
            if recipe == "plain" or not plain or not found:
                continue
            # The seeds that both have.
            seeds = plain.keys() & found.keys()
            if not seeds:
                continue
            gain = 100 * mean(found[seed].union - plain[seed].union for seed in seeds)
            cost = mean(found[seed].passes / plain[seed].passes for seed in seeds)
            aim = f" (aim: at most {AIMS[recipe]:.2f})" if recipe in AIMS else ""
            helps = "helps" if gain >= 1 else "helps by less than a point" if gain > 0 else "does not help"
            yield f"{method} {recipe}: union {gain:+.1f} points at {cost:.2f} times the passes{aim}; it {helps}."


def table(setting: Setting, runs: Runs) -> Iterator[str]:
    """Lay out a row for each method and recipe that has a run."""
    heads = ("method", "recipe", "clean", *setting.eps, "average", "union", "passes", "time", "averaged")
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for cell in CELLS:
        if not (by_seed := runs.get(cell)):
            continue
        found = list(by_seed.values())
        plain = runs.get(f"{cell.split()[0]} plain", {})
        pairs = [(run, plain[seed]) for seed, run in by_seed.items() if seed in plain]
        cells = [
            spread([100 * run.clean for run in found]),
            *(spread([100 * run.robust[norm] for run in found]) for norm in setting.eps),
            spread([100 * run.average for run in found]),
            spread([100 * run.union for run in found]),
            f"{mean(run.passes / other.passes for run, other in pairs):.2f}" if pairs else "",
            f"{mean(run.cpu_seconds / max(other.cpu_seconds, 1e-9) for run, other in pairs):.2f}" if pairs else "",
            f"{sum(run.delivered == 'averaged' for run in found)} of {len(found)}",
        ]
        yield f"| {' | '.join([*cell.split(), *cells])} |"


def main() -> None:
    """Measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="ARCHIVE", help="CIFAR-10 as JPEGs in folders")
    parser.add_argument("--points", type=int, help="test points; by default 300, and 500 with --cifar")
    parser.add_argument("--seeds", type=int, default=2, help="by default 2")
    parser.add_argument("--train-examples", type=int, help="training images; by default all, and 10,000 with --cifar")
    parser.add_argument("--only", help="these cells alone, with commas between them, such as 'e-at plain,e-at awp'")
    parser.add_argument("--output", type=Path, help="the JSON file; by default in benchmarks/results")
    options = parser.parse_args()
    cells = options.only.split(",") if options.only else list(CELLS)
    if unknown := [cell for cell in cells if cell not in CELLS]:
        parser.error(f"there is no cell {unknown[0]!r}: choose from {', '.join(CELLS)}")
    setting = _setting(options)
    path = options.output or RESULTS / f"recipes-{'cifar10' if options.cifar else 'digits'}.json"
    runs = _read(path, setting)
    # Seed by seed, so that a benchmark that is cut off has whole tables.
    for seed in range(options.seeds):
        for cell in cells:
            if str(seed) in runs.get(cell, {}):
                continue
            found = run(setting, Inputs(data=options.cifar), cell, seed)
            runs.setdefault(cell, {})[str(seed)] = found
            _write(path, setting, runs)
            print(
                f"{cell}, seed {seed}: union {100 * found.union:.1f}, {found.delivered} weights, "
                f"{found.cpu_seconds:.0f} s of training",
                flush=True,
            )
    print("\n".join([*description(setting, runs), "", *table(setting, runs)]))


def _setting(options: argparse.Namespace) -> Setting:
    entry = DATASETS["cifar10" if options.cifar else "digits"]
    base = "cifar10-small-linf" if options.cifar else "digits-cnn-linf"
    return Setting(
        base=base,
        base_sha256=checkpoint.hash_file(checkpoint.base_model_file(base, None)),
        # The name says that these are not the original images.
        dataset="cifar10-jpeg" if options.cifar else "digits",
        eps=dict(entry.eps),
        epochs=3,
        batch_size=entry.batch_size,
        learning_rate=ARCHITECTURES[MODELS[base].architecture].learning_rate,
        augmentation=entry.augmentation,
        train_examples=options.train_examples or (10_000 if options.cifar else None),
        points=options.points or (500 if options.cifar else 300),
        recipes=dict(RECIPES),
    )


def _read(path: Path, setting: Setting) -> Runs:
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if stored["setting"] != asdict(setting):
        raise SystemExit(f"{path} holds results of other settings: move it away, or name another --output")
    return {cell: {seed: Run(**run) for seed, run in by_seed.items()} for cell, by_seed in stored["runs"].items()}


def _write(path: Path, setting: Setting, runs: Runs) -> None:
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), **checkpoint.versions()}
    stored = {cell: {seed: asdict(run) for seed, run in by_seed.items()} for cell, by_seed in runs.items()}
    content = {"machine": machine, "commit": checkpoint.commit(), "setting": asdict(setting), "runs": stored}
    replace_file(path, json.dumps(content, indent=1) + "\n")
    title = f"# Recipes: {'the digits' if setting.dataset == 'digits' else 'CIFAR-10 (JPEG)'}"
    lines = [title, "", *description(setting, runs), "", *table(setting, runs)]
    replace_file(path.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
