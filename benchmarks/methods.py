"""Fine-tune one base model by every method, and print the first table of the E-AT paper for them.

    python -m benchmarks.methods                      the digits base, 3 seeds, 300 test points
    python -m benchmarks.methods --cifar ARCHIVE      the small base for CIFAR-10 (JPEG): 10,000 images, 500 test points

Every cell is a run as a user would start it. What is done is written after each run, and a second start goes on from
there. --points, --seeds and --train-examples make it smaller; give --output then, for it is not the whole.

Accuracies are those of the `paper` protocol in per cent, mean and standard deviation over the seeds. "s/epoch" is the
wall time of training alone, as each run took it. Runs follow each other, and a machine has other work at times: so
"cost" is measured apart, by turns, every method on the same batches, in CPU seconds, relative to the mean of the three
`single` rows. "forward" and "backward" are passes per training image, those of the update included.
"""

import argparse
import copy
import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from core import checkpoint
from core.data.split import Batch
from core.evaluation.autoattack import evaluate
from core.inputs import Inputs, load
from core.schema.catalog import DATASETS, NORMS, Norm, find_architecture
from core.schema.events import Evaluated, Stepped
from core.schema.report import Report
from core.schema.spec import FineTuneSpec, parse
from core.training.methods import build
from core.training.methods.contract import Counts, add_counts, whole
from core.training.run import fine_tune

METHODS: Mapping[str, Any] = {
    "nat": "nat",
    **{f"single {norm}": {"name": "single", "norms": [norm]} for norm in NORMS},
    **{name: name for name in ("sat", "avg", "max", "msd", "e-at", "ramp", "pat")},
}
MULTI_NORM = ("sat", "avg", "max", "msd", "e-at", "ramp")
RESULTS = Path(__file__).parent / "results"

_ROUNDS = 12
"""Batches on which the cost of every method is measured."""


@dataclass(frozen=True)
class Tuning:
    """What is fine-tuned, on what, and how it is measured."""

    base: str
    base_sha256: str
    dataset: str
    eps: dict[Norm, float]
    epochs: int
    batch_size: int
    learning_rate: float
    augmentation: str
    train_examples: int | None
    points: int

    def spec(self, method: Any, seed: int, /, **more: Any) -> FineTuneSpec:
        """Write down the run of one method from one seed. more: fields of the spec that replace these."""
        spec = parse(
            {
                "base_model": self.base,
                "dataset": self.dataset,
                # As the figures were made.
                "split": "uniform",
                "method": method,
                "eps": self.eps,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "augmentation": self.augmentation,
                "train_examples": self.train_examples,
                "seed": seed,
                "evaluation": {"protocol": "paper", "examples": self.points, "include_base": False},
                **more,
            }
        )
        assert isinstance(spec, FineTuneSpec)
        return spec


@dataclass(frozen=True, kw_only=True)
class Setting(Tuning):
    """Everything that decides the numbers."""

    title: str
    seeds: int


@dataclass(frozen=True)
class Run:
    """One method from one seed; accuracies as shares."""

    clean: float
    robust: dict[Norm, float]
    average: float
    union: float
    seconds_per_epoch: float | None
    """Wall time of training; None for the base."""

    @classmethod
    def of(cls, report: Report, seconds_per_epoch: float | None) -> "Run":
        """Take what the table shows from a report."""
        robust = {norm: rate.value for norm, rate in report.robust.items()}
        return cls(report.clean.value, robust, report.average, report.union.value, seconds_per_epoch)


@dataclass(frozen=True)
class Cost:
    """What one training step takes."""

    forward: float
    """Forward passes per training image."""
    backward: float
    """Backward passes per training image; all but that of the update are for the image alone."""
    relative: float
    """CPU time relative to the mean of the three single-norm methods."""


@dataclass
class Results:
    """All that is known so far, and the file that keeps it."""

    path: Path
    setting: Setting
    runs: dict[str, dict[str, Run]] = field(default_factory=dict)
    """Per method, per seed."""
    costs: dict[str, Cost] = field(default_factory=dict)

    def read(self) -> None:
        """Go on from what an earlier start has written. Ends the program if that was with other settings."""
        if not self.path.exists():
            return
        stored = json.loads(self.path.read_text())
        if stored["setting"] != asdict(self.setting):
            raise SystemExit(f"{self.path} holds results of other settings: move it away, or name another --output")
        self.runs = {name: {seed: Run(**run) for seed, run in runs.items()} for name, runs in stored["runs"].items()}
        self.costs = {name: Cost(**cost) for name, cost in stored["costs"].items()}

    def write(self) -> None:
        """Write the numbers as JSON and the table as Markdown, each whole or not at all."""
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), **checkpoint.versions()}
        content = {"machine": machine, "commit": checkpoint.commit(), **{name: _plain(self, name) for name in _STORED}}
        replace_file(self.path, json.dumps(content, indent=1) + "\n")
        lines = [f"# {self.setting.title}", "", *self.description(), "", *self.table()]
        replace_file(self.path.with_suffix(".md"), "\n".join(lines) + "\n")

    def description(self) -> Iterator[str]:
        """Say what the table is about."""
        eps = ", ".join(f"{norm} {radius:.4g}" for norm, radius in self.setting.eps.items())
        count = self.setting.train_examples
        images = "all training images" if count is None else f"{count:,} training images"
        yield f"`{self.setting.base}` fine-tuned for {self.setting.epochs} epochs on {images}; {eps}."
        yield f"`paper` protocol on {self.setting.points} test points, seeds: {self.setting.seeds}; per cent, mean and"
        yield "deviation. s/epoch: wall time of training as it was. cost: CPU time, measured by turns, relative to the"
        yield "mean of the `single` rows. forward, backward: passes per training image."
        if verdict := self.verdict():
            yield f"\n{verdict}"

    def verdict(self) -> str:
        """Hold the multi-norm rows against the shape that the paper leads one to expect."""
        base = self.runs.get("base", {}).values()
        lifts = {
            name: 100 * (mean(run.union for run in self.runs[name].values()) - mean(run.union for run in base))
            for name in MULTI_NORM
            if base and self.runs.get(name)
        }
        if not lifts:
            return ""
        least = min(lifts, key=lambda name: lifts[name])
        return f"Least lift of the union by a multi-norm method: {lifts[least]:.1f} points, {least} (expected: 15)."

    def table(self) -> Iterator[str]:
        """Lay out a row for each method that has a run."""
        heads = ("method", "clean", *self.setting.eps, "average", "union", "s/epoch", "cost", "forward", "backward")
        yield f"| {' | '.join(heads)} |"
        yield f"|{'---|' * len(heads)}"
        for name, by_seed in self.runs.items():
            runs = list(by_seed.values())
            cells = [
                spread([100 * run.clean for run in runs]),
                *(spread([100 * run.robust[norm] for run in runs]) for norm in self.setting.eps),
                spread([100 * run.average for run in runs]),
                spread([100 * run.union for run in runs]),
                spread([run.seconds_per_epoch for run in runs if run.seconds_per_epoch is not None]),
            ]
            if cost := self.costs.get(name):
                cells += [f"{cost.relative:.2f}", f"{cost.forward:.1f}", f"{cost.backward:.1f}"]
            yield f"| {' | '.join([name, *cells, *[''] * (len(heads) - 1 - len(cells))])} |"


_STORED = ("setting", "costs", "runs")


def _plain(results: Results, name: str) -> Any:
    value = getattr(results, name)
    if name == "setting":
        return asdict(value)
    if name == "costs":
        return {method: asdict(cost) for method, cost in value.items()}
    return {method: {seed: asdict(run) for seed, run in runs.items()} for method, runs in value.items()}


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all: a benchmark may be cut off at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.write_text(text)
    partial.replace(path)


def spread(values: list[float]) -> str:
    """Format the mean and the deviation of some values; of one value, that alone."""
    if not values:
        return ""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def measure_base(setting: Setting, inputs: Inputs, seed: int) -> Run:
    """Evaluate the base model as the runs evaluate what they made of it."""
    loaded = load(setting.spec("nat", seed), inputs)
    part = loaded.test.first(setting.points)
    report = evaluate(loaded.model, part.images(), part.labels, setting.eps, protocol="paper", seed=seed)
    return Run.of(report, None)


def run(setting: Setting, inputs: Inputs, method: Any, seed: int) -> Run:
    """Fine-tune by one method and evaluate."""
    seconds, report = 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        for event in fine_tune(setting.spec(method, seed), Path(folder), inputs):
            match event:
                case Stepped():
                    seconds = event.seconds
                case Evaluated():
                    report = event.report
    assert report is not None
    return Run.of(report, seconds / setting.epochs)


def measure_costs(setting: Setting, inputs: Inputs) -> dict[str, Cost]:
    """Take every method through the same few batches, by turns, and count its passes and its CPU time."""
    loaded = load(setting.spec("nat", 0), inputs)
    train = loaded.dataset.train.to(loaded.device)
    workers = {name: _Worker(setting, method, loaded.model) for name, method in METHODS.items()}
    size = min(setting.batch_size, len(train))
    for round_ in range(_ROUNDS + 1):
        batch = train.pick(torch.arange(round_ * size, (round_ + 1) * size) % len(train))
        for worker in workers.values():
            # The first round warms up.
            worker.work(batch.images(), batch.labels, counted=round_ > 0)
    unit = mean(workers[f"single {norm}"].seconds for norm in NORMS)
    images = _ROUNDS * size
    return {
        name: Cost(worker.passes["forward"] / images, worker.passes["backward"] / images, worker.seconds / unit)
        for name, worker in workers.items()
    }


class _Worker:
    """A method on its own copy of the base model, with a count of what it costs."""

    def __init__(self, setting: Setting, method: Any, base: nn.Module) -> None:
        spec = setting.spec(method, 0)
        self.passes: Counter[str] = Counter()
        self.seconds = 0.0
        self._counted = False
        self._model = copy.deepcopy(base).train()
        # An attack looks at a twin of the model, which shares this layer with it.
        last = [module for module in self._model.modules() if isinstance(module, nn.Linear)][-1]
        last.register_forward_hook(self._count)
        self._counts: Counts = {}
        self._method = build(spec.method, spec.eps, torch.Generator().manual_seed(0))
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=spec.learning_rate, momentum=spec.momentum or 0.0
        )

    def work(self, images: Tensor, labels: Tensor, *, counted: bool) -> None:
        """Take one training step."""
        self._counted = counted
        begun = time.process_time()
        self._optimizer.zero_grad()
        batch = Batch(images, labels)
        found = self._method(self._model, batch, whole(batch), self._counts)
        self._counts = add_counts(self._counts, found.counts)
        found.total().backward()
        self._optimizer.step()
        self.seconds += counted * (time.process_time() - begun)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        del module, inputs
        self.passes["forward"] += self._counted * len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)

    def _count_backward(self, gradient: Tensor) -> None:
        self.passes["backward"] += self._counted * len(gradient)


def main() -> None:
    """Measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="ARCHIVE", help="CIFAR-10 as JPEGs in folders")
    parser.add_argument("--base", type=Path, metavar="FILE", help="another base model, as a file")
    parser.add_argument("--points", type=int, help="test points; by default 300, and 500 with --cifar")
    parser.add_argument("--seeds", type=int, help="by default 3, and 1 with --cifar")
    parser.add_argument("--train-examples", type=int, help="training images; by default all, and 10,000 with --cifar")
    parser.add_argument("--output", type=Path, help="the JSON file; by default in benchmarks/results")
    options = parser.parse_args()
    inputs = Inputs(weights=options.base, data=options.cifar)
    setting = _setting(options)
    name = "methods-cifar10.json" if options.cifar else "methods-digits.json"
    results = Results(options.output or RESULTS / name, setting)
    results.read()
    if not results.costs:
        results.costs = measure_costs(setting, inputs)
        results.write()
    # Seed by seed, so that a run that is cut off has whole tables.
    for seed in range(setting.seeds):
        for method in ("base", *METHODS):
            of_method = results.runs.setdefault(method, {})
            if str(seed) in of_method:
                continue
            if method == "base":
                of_method[str(seed)] = measure_base(setting, inputs, seed)
            else:
                of_method[str(seed)] = run(setting, inputs, METHODS[method], seed)
            results.write()
            print(f"{method}, seed {seed}: union {100 * of_method[str(seed)].union:.1f}", flush=True)
    print("\n".join([*results.description(), "", *results.table()]))


def _setting(options: argparse.Namespace) -> Setting:
    dataset = DATASETS["cifar10" if options.cifar else "digits"]
    shipped = "cifar10-small-linf" if options.cifar else "digits-cnn-linf"
    base = options.base.stem if options.base else shipped
    weights = checkpoint.base_model_file(base, options.base)
    entry = find_architecture(checkpoint.load(weights)[1].blueprint.architecture)
    assert entry is not None
    return Setting(
        title="Methods on CIFAR-10 (JPEG)" if options.cifar else "Methods on the digits",
        base=base,
        base_sha256=checkpoint.hash_file(weights),
        dataset="cifar10-jpeg" if options.cifar else "digits",
        eps=dict(dataset.eps),
        epochs=dataset.epochs,
        batch_size=dataset.batch_size,
        learning_rate=entry.learning_rate,
        augmentation=dataset.augmentation,
        train_examples=options.train_examples or (10_000 if options.cifar else None),
        points=options.points or (500 if options.cifar else 300),
        seeds=options.seeds or (1 if options.cifar else 3),
    )


if __name__ == "__main__":
    main()
