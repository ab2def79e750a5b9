"""Do on one GPU what the E-AT paper's first table did, and time it: base, six methods, proof, and AutoAttack's price.

    python -m benchmarks.gpu --cifar ARCHIVE --output "$OUT/gpu.json" --minutes 9
    python -m benchmarks.gpu --tiny                            all of it at a CPU's size, in about two minutes
    python -m benchmarks.gpu --join base.safetensors           put the base together from its pieces

In this order: the rate of matrix products, which is the ceiling; a PreAct ResNet-18 trained on CIFAR-10 (JPEG) to be
robust to linf, rounded to fp16 and cut into pieces; E-AT; `standard` AutoAttack, ours and pyautoattack, on the base and
after E-AT; the other methods. Each start does what is missing, until --minutes are over, writes the numbers after each
part, and ends with status 75 if something is left: then the same command goes on. What is only half done, and what
other parts need, lies in --work. Where that is lost, the base comes from its pieces beside the numbers, an unfinished
training begins anew, and E-AT is repeated if AutoAttack still needs its weights. What decides numbers (--base-epochs,
--train-examples, --points, --compared) is the same in every start.

Written for a machine that has PyTorch, torchvision and timm and reaches nothing. The packages it lacks travel in a
folder that git ignores, made with a Python of the same version as its own:

    pip install --target runs/packages --no-deps --only-binary=:all: --python-version 3.12 \\
        --platform manylinux_2_17_x86_64 pydantic pydantic-core annotated-types typing-extensions typing-inspection \\
        safetensors pyautoattack==0.2.0 scikit-learn scipy joblib threadpoolctl

(leave out those it has), and there `export PYTHONPATH=runs/packages`. If it keeps only what lies in $OUT, copy the
results of the last start there before the next: `cp benchmarks/results/gpu* "$OUT"`. They are at most 7 files of 16 MB.

A pass over the training images costs so many operations, counted from the network's convolutions and products; at the
measured rate they would take the time that is called the floor. Seconds per epoch are those between training steps:
loading, saving and monitoring are left out, and so is the first step after each of them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.autoattack import Case, compare, show
from benchmarks.methods import METHODS, MULTI_NORM, RESULTS, Run, Setting
from benchmarks.pieces import Piece, Whole, cut, join
from core import checkpoint, data
from core.cli.console import event_lines
from core.data.split import Batch, Split
from core.evaluation.autoattack import run_evaluation
from core.inputs import Inputs
from core.models import Blueprint
from core.models import build as build_network
from core.models.precision import full_float32, resolve
from core.schema.catalog import DATASETS, NORMS, Norm, find_architecture
from core.schema.events import Evaluated, Event, Paused, Started, Stepped
from core.schema.exit_status import ExitStatus
from core.schema.report import Report
from core.schema.spec import EvaluateSpec, Protocol, TrainingSpec, TrainSpec, parse
from core.signals import StopRequests
from core.training.methods import build
from core.training.methods.contract import whole
from core.training.run import fine_tune

COMPARED: tuple[str, ...] = ("base", "e-at")
"""The models on which AutoAttack is timed."""
_PIECE = 15 * 2**20

PAPER: Mapping[str, tuple[str, ...]] = {
    "base": ("83.7", "48.1", "59.8", "7.7", "38.5", "7.7", "151"),
    "sat": ("83.5 ± 0.2", "43.5 ± 0.2", "68.0 ± 0.4", "47.4 ± 0.5", "53.0 ± 0.2", "41.0 ± 0.3", "161"),
    "avg": ("84.2 ± 0.4", "43.3 ± 0.4", "68.4 ± 0.6", "46.9 ± 0.6", "52.9 ± 0.4", "40.6 ± 0.4", "479"),
    "max": ("82.2 ± 0.3", "45.2 ± 0.4", "67.0 ± 0.7", "46.1 ± 0.4", "52.8 ± 0.3", "42.2 ± 0.6", "466"),
    "msd": ("82.2 ± 0.4", "44.9 ± 0.3", "67.1 ± 0.6", "47.2 ± 0.6", "53.0 ± 0.4", "42.6 ± 0.2", "306"),
    "e-at": ("82.7 ± 0.4", "44.3 ± 0.6", "68.1 ± 0.5", "48.7 ± 0.5", "53.7 ± 0.3", "42.2 ± 0.8", "160"),
}
"""The first table of the paper's poster (Croce & Hein 2022): clean, linf, l2, l1, average, union, seconds per epoch.
PreAct ResNet-18 on CIFAR-10; which GPU is not said. It has no RAMP."""


@dataclass(frozen=True)
class Scale:
    """How much is done. Everything that decides the numbers, beside the code."""

    title: str
    note: str
    command: str
    """How to start it, but for where things lie."""
    base_name: str
    dataset: str
    recipe: str
    """The data set of the catalogue whose radii, batches and epochs are taken."""
    architecture: str
    base_epochs: int
    base_steps: int
    """Steps of the attack that the base is trained with."""
    base_learning_rate: float
    train_examples: int | None
    points: int
    """Test points of the table, at the `paper` protocol."""
    compared: int
    """Test points on which ours and pyautoattack run."""
    compared_protocol: Protocol
    """paper or standard: pyautoattack has no fewer steps, so `fast` would compare unequal attacks."""
    side: int
    """Rows and columns of the matrices whose product is timed."""

    @property
    def eps(self) -> dict[Norm, float]:
        """The radius per norm."""
        return dict(DATASETS[self.recipe].eps)

    def base(self) -> TrainSpec:
        """Write down the run that makes the base: linf alone, in few steps, one-cycle."""
        spec = parse(
            {
                "kind": "train",
                "architecture": self.architecture,
                "dataset": self.dataset,
                # As the figures were made.
                "split": "uniform",
                "method": {"name": "single", "norms": ["linf"], "steps": self.base_steps},
                "eps": self.eps,
                "epochs": self.base_epochs,
                "batch_size": DATASETS[self.recipe].batch_size,
                "learning_rate": self.base_learning_rate,
                "schedule": "one-cycle",
                "augmentation": DATASETS[self.recipe].augmentation,
                "train_examples": self.train_examples,
                # What it is worth is measured afterwards, on the rounded weights that everybody gets.
                "evaluation": {"protocol": "fast", "examples": self.points},
            }
        )
        assert isinstance(spec, TrainSpec)
        return spec

    def paper(self) -> EvaluateSpec:
        """Write down the evaluation of the base."""
        evaluation = {"protocol": "paper", "examples": self.points}
        body = {
            "kind": "evaluate",
            "base_model": self.base_name,
            "dataset": self.dataset,
            "split": "uniform",
            "eps": self.eps,
        }
        spec = parse({**body, "evaluation": evaluation})
        assert isinstance(spec, EvaluateSpec)
        return spec

    def setting(self, base_sha256: str) -> Setting:
        """Say how the base is fine-tuned."""
        recipe, entry = DATASETS[self.recipe], find_architecture(self.architecture)
        assert entry is not None
        return Setting(
            title=self.title,
            base=self.base_name,
            base_sha256=base_sha256,
            dataset=self.dataset,
            eps=self.eps,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=entry.learning_rate,
            augmentation=recipe.augmentation,
            train_examples=self.train_examples,
            points=self.points,
            seeds=1,
        )

    def training(self, name: str) -> TrainingSpec:
        """Write down the run that makes a row of the table."""
        return self.base() if name == "base" else self.setting("").spec(METHODS[name], 0)


FULL = Scale(
    title="Multiple-norm robustness on CIFAR-10 (JPEG), on one GPU",
    note="CIFAR-10 with its images as JPEGs of quality 75, one seed. The paper's numbers are of CIFAR-10 itself, five "
    "seeds, another base.",
    command="python -m benchmarks.gpu",
    base_name="gpu-base",
    dataset="cifar10-jpeg",
    recipe="cifar10",
    architecture="preact-resnet-18-softplus",
    base_epochs=30,
    base_steps=3,
    base_learning_rate=0.1,
    train_examples=None,
    points=1000,
    compared=250,
    compared_protocol="standard",
    side=8192,
)
TINY = Scale(
    title="Multiple-norm robustness, the benchmark for a GPU at the size of a CPU",
    note="**CPU, tiny: proves that the script runs, says nothing about quality.** A small network, few digits and few "
    "epochs, `paper` in place of AutoAttack's `standard`; the paper's numbers beside it are of another network and "
    "other images. No GPU was at hand.",
    command="python -m benchmarks.gpu --tiny",
    base_name="gpu-tiny-base",
    dataset="digits",
    recipe="digits",
    architecture="digits-cnn",
    base_epochs=3,
    base_steps=2,
    base_learning_rate=0.05,
    train_examples=256,
    points=10,
    compared=20,
    compared_protocol="paper",
    side=512,
)


@dataclass
class Pace:
    """How fast a run trains."""

    device: str
    precision: str
    """The arithmetic of its matrix products: bf16 or fp32."""
    operations: float
    """Floating-point operations per training image, those of the attack included."""
    images: int
    """Images of an epoch."""
    steps_per_epoch: int
    steps: int = 0
    """Steps that were timed."""
    seconds: float = 0.0
    """What they took."""

    @property
    def per_epoch(self) -> float | None:
        """Seconds per epoch; None where no step was timed."""
        return self.seconds / self.steps * self.steps_per_epoch if self.steps else None

    @property
    def operations_per_epoch(self) -> float:
        """Floating-point operations of an epoch."""
        return self.operations * self.images


class OutOfTime(Exception):
    """The minutes of this start are over."""


class Budget:
    """The time that this start has."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def spent(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self._end


@dataclass
class Results:
    """All that is known so far, and the files that keep it."""

    path: Path
    scale: Scale
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per device and kind of number, TFLOP/s."""
    base: Whole | None = None
    """The base, and the pieces it is in."""
    paces: dict[str, Pace] = field(default_factory=dict)
    """Per row of the table."""
    runs: dict[str, Run] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    """What ours and pyautoattack found and took, per model and norm."""

    def read(self) -> None:
        """Go on from what an earlier start has written. Ends the program if that was at another scale."""
        if not self.path.exists():
            return
        stored = json.loads(self.path.read_text())
        if stored["scale"] != asdict(self.scale):
            raise SystemExit(f"{self.path} holds results of another scale: move it away, or name another --output")
        self.rates, self.cells = stored["rates"], stored["cells"]
        if found := stored["base"]:
            self.base = Whole(**{**found, "pieces": tuple(Piece(**piece) for piece in found["pieces"])})
        self.paces = {name: Pace(**pace) for name, pace in stored["paces"].items()}
        self.runs = {name: Run(**run) for name, run in stored["runs"].items()}

    def write(self) -> None:
        """Write the numbers as JSON and the tables as Markdown, each whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "note": self.scale.note,
            "scale": asdict(self.scale),
            "versions": checkpoint.versions(),
            "commit": checkpoint.commit(),
            "rates": self.rates,
            "base": asdict(self.base) if self.base else None,
            "paces": {name: asdict(pace) for name, pace in self.paces.items()},
            "runs": {name: asdict(run) for name, run in self.runs.items()},
            "cells": self.cells,
        }
        checkpoint.write_file(self.path, (json.dumps(content, indent=1) + "\n").encode())
        checkpoint.write_file(self.path.with_suffix(".md"), ("\n".join(self.page()) + "\n").encode())

    def page(self) -> Iterator[str]:
        """Lay out everything for people."""
        scale = self.scale
        eps = ", ".join(f"{norm} {radius:.4g}" for norm, radius in scale.eps.items())
        yield from (f"# {scale.title}", "", scale.note, "")
        yield f"`{scale.architecture}`, {eps}. The base: linf alone, {scale.base_epochs} epochs, {scale.base_steps} "
        yield f"steps of attack; then {DATASETS[scale.recipe].epochs} epochs by each method. Per cent of "
        yield f"{scale.points} test points, `paper` protocol; in parentheses the paper's. \\"
        versions = ", ".join(f"{name} {version}" for name, version in checkpoint.versions().items())
        yield f"Devices: {', '.join(self.rates)}. {versions}."
        yield from ("", *self._accuracies(), "", *self._costs(), "", *self._attacks(), *self._pieces())

    def _accuracies(self) -> Iterator[str]:
        yield from _row("model", "clean", *NORMS, "average", "union", "s/epoch")
        yield f"|{'---|' * 8}"
        for name in ("base", *MULTI_NORM):
            if not (run := self.runs.get(name)):
                continue
            shares = (run.clean, *(run.robust[norm] for norm in NORMS), run.average, run.union)
            seconds = self.paces[name].per_epoch if name in self.paces else None
            cells = [*(f"{100 * share:.1f}" for share in shares), "" if seconds is None else f"{seconds:.2f}"]
            paper = PAPER.get(name, ("",) * len(cells))
            pairs = zip(cells, paper, strict=True)
            label = "linf-AT" if name == "base" else f"+ {name.upper()}"
            yield from _row(label, *(f"{ours} ({theirs})" if theirs else ours for ours, theirs in pairs))

    def _costs(self) -> Iterator[str]:
        for device, rates in self.rates.items():
            told = ", ".join(f"{kind} {rate:.4g}" for kind, rate in rates.items())
            yield f"Matrix products of {self.scale.side} rows on {device}, TFLOP/s: {told}."
        yield from ("", *_row("training", "TFLOP/epoch", "in", "floor, s", "s/epoch", "times the floor", "device"))
        yield f"|{'---|' * 7}"
        for name in ("base", *MULTI_NORM):
            pace = self.paces.get(name)
            if not pace or (seconds := pace.per_epoch) is None:
                continue
            operations = pace.operations_per_epoch / 1e12
            floor = operations / self.rates[pace.device][pace.precision]
            numbers = (f"{floor:.3g}", f"{seconds:.2f}", f"{seconds / floor:.1f}")
            yield from _row(name, f"{operations:.4g}", pace.precision, *numbers, pace.device)

    def _attacks(self) -> Iterator[str]:
        if not self.cells:
            return
        yield f"`{self.scale.compared_protocol}`, ours and pyautoattack on the same points, in one logical batch:"
        heads = ("model", "norm", "points", "robust, ours", "theirs", "flips", "own flips", "s, ours", "theirs")
        yield from ("", *_row(*heads, "faster", "passes, M", "theirs", "device"))
        yield f"|{'---|' * 13}"
        for cell in self.cells:
            own = "" if cell["their_own_flips"] is None else cell["their_own_flips"]
            costs = (cell["our_cost"], cell["their_cost"])
            seconds = [f"{cost['seconds']:.1f}" for cost in costs]
            passes = [f"{(cost['forward'] + cost['backward']) / 1e6:.3g}" for cost in costs]
            found = (cell["points"], cell["ours"], cell["theirs"], cell["flips"], own)
            faster = f"{cell['faster']:.1f}"
            yield from _row(cell["model"], cell["norm"], *found, *seconds, faster, *passes, cell["device"])

    def _pieces(self) -> Iterator[str]:
        if not self.base:
            return
        run = self.runs.get("base")
        worth = f" Clean {100 * run.clean:.1f}, linf {100 * run.robust['linf']:.1f} per cent as above." if run else ""
        names = ", ".join(f"`{piece.name}`" for piece in self.base.pieces)
        yield from ("", f"The base in fp16, which every row started from: {self.base.size:,} bytes, sha256 \\")
        yield f"`{self.base.sha256}`, in {names}.{worth} \\"
        yield f"`{self.scale.command} --join {self.base.name}` puts it together."


def _row(*cells: object) -> Iterator[str]:
    yield f"| {' | '.join(map(str, cells))} |"


def measure_rates(device: torch.device, side: int) -> dict[str, float]:
    """Time the product of two square matrices of random numbers, in TFLOP/s, per kind of number."""
    kinds = {"bf16": (torch.bfloat16, "highest"), "fp32": (torch.float32, "highest")}
    if device.type == "cuda":
        kinds["tf32"] = (torch.float32, "high")
    before, found = torch.get_float32_matmul_precision(), {}
    draws = torch.Generator(device).manual_seed(0)
    for kind, (dtype, precision) in kinds.items():
        torch.set_float32_matmul_precision(precision)
        left, right = (torch.randn(side, side, device=device, generator=draws).to(dtype) for _ in range(2))
        for _ in range(3):
            left @ right
        _finish(device)
        begun = time.perf_counter()
        for _ in range(20):
            left @ right
        _finish(device)
        found[kind] = 20 * 2 * side**3 / (time.perf_counter() - begun) / 1e12
    torch.set_float32_matmul_precision(before)
    return found


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_operations(spec: TrainingSpec, blueprint: Blueprint, *, images: int = 2) -> float:
    """Count the floating-point operations per image of one training step, attack and update, as they are carried out.

    A multiplication with its addition counts as two. On the CPU, with fresh weights: neither changes the count.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_network(blueprint).train()
        pixels = torch.rand(images, *blueprint.shape)
    method = build(spec.method, spec.eps, torch.Generator().manual_seed(0))
    batch = Batch(pixels, torch.arange(images) % blueprint.classes)
    # What a run does once, such as trying out the model's folded twin, is in its first step.
    method(model, batch, whole(batch), {})
    with _Operations() as operations:
        method(model, batch, whole(batch), {}).total().backward()
    return operations.count / images


class _Operations(TorchDispatchMode):
    """Counts them by torch's formulas. Its own FlopCounterMode refuses gradients at images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


def device_name(device: torch.device) -> str:
    """Name the device as the tables do."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


@dataclass
class Bench:
    """All parts, each of which goes on where an earlier start stopped."""

    results: Results
    work: Path
    archive: Path | None
    device: torch.device
    budget: Budget
    own: bool
    """Whether pyautoattack is held against itself, too."""

    @property
    def scale(self) -> Scale:
        """How much is done."""
        return self.results.scale

    def run(self) -> None:
        """Do what is missing. Raises OutOfTime."""
        for part in self.parts():
            if self.budget.spent:
                raise OutOfTime
            part()
            self.results.write()

    def parts(self) -> Iterator[Callable[[], None]]:
        """Give what is missing in the order of what is most worth knowing."""
        name = device_name(self.device)
        if name not in self.results.rates:
            yield lambda: self.results.rates.update({name: measure_rates(self.device, self.scale.side)})
        if not self.results.base:
            yield self.make_base
        if "base" not in self.results.runs:
            yield self.measure_base
        if "e-at" not in self.results.runs:
            yield lambda: self.fine_tune("e-at")
        known = {(cell["model"], cell["norm"]) for cell in self.results.cells}
        for model in COMPARED:
            for norm in NORMS:
                if (model, norm) not in known:
                    yield lambda model=model, norm=norm: self.compare(model, norm)  # type: ignore[misc]
        for method in MULTI_NORM:
            if method not in self.results.runs:
                yield lambda method=method: self.fine_tune(method)  # type: ignore[misc]

    def make_base(self) -> None:
        """Train the base, round its weights to fp16, and cut the file into pieces."""
        path = self.train("base", Inputs(data=self.archive, device=self.device))
        model, header = checkpoint.load(path)
        rounded = self.work / f"{self.scale.base_name}.safetensors"
        checkpoint.save_checkpoint(rounded, model.half(), header)
        self.results.base = cut(rounded, self.results.path.parent, size=_PIECE)

    def base(self) -> Path:
        """Say where the base lies, whole; where it does not, put it together first."""
        whole = self.results.base
        assert whole is not None
        path = self.work / whole.name
        if not path.exists() or checkpoint.hash_file(path) != whole.sha256:
            join(whole, self.results.path.parent, path)
        return path

    def inputs(self) -> Inputs:
        """Say what a run that starts from the base needs."""
        return Inputs(weights=self.base(), data=self.archive, device=self.device)

    def measure_base(self) -> None:
        """Evaluate the base as the methods' results are."""
        report = self.follow(
            run_evaluation(self.scale.paper(), self.work / "base-paper", self.inputs()), None, StopRequests()
        )
        self.results.runs["base"] = Run.of(report, None)

    def fine_tune(self, method: str) -> None:
        """Fine-tune by a method, with the evaluation that the run makes of its result."""
        reports = checkpoint.read_header(self.train(method, self.inputs())).reports
        assert reports is not None
        assert reports.after is not None
        pace = self.results.paces.get(method)
        self.results.runs[method] = Run.of(reports.after, pace.per_epoch if pace else None)

    def train(self, name: str, inputs: Inputs) -> Path:
        """Make the model of a row, if no earlier start has; say where it lies."""
        spec, folder = self.scale.training(name), self.work / name
        path = folder / "checkpoint.safetensors"
        if path.exists():
            header, whole = checkpoint.read_header(path), self.results.base
            if (header.spec, header.base_sha256) == (spec, whole.sha256 if whole else None):
                return path
        requests = StopRequests()
        self.follow(fine_tune(spec, folder, inputs, requests=requests), name, requests)
        return path

    def follow(self, events: Iterator[Event], name: str | None, requests: StopRequests) -> Report:
        """Tell what a run does, and time its steps if it is the training of a row; give its result's evaluation.

        Raises OutOfTime where the run has stopped to go on another time.
        """
        report, before = None, None
        for event in events:
            for line in () if isinstance(event, Stepped) else event_lines(event):
                print(line, flush=True)
            match event:
                case Started() if name:
                    self.begin(name, event)
                case Stepped() if name:
                    if before is not None:
                        self.results.paces[name].steps += 1
                        self.results.paces[name].seconds += event.seconds - before
                    before = event.seconds
                case Paused():
                    raise OutOfTime
                case Evaluated(subject="result"):
                    report = event.report
                case _:
                    before = None
            if self.budget.spent and report is None:
                if not requests.stepping:
                    raise OutOfTime
                requests.pause = True
        assert report is not None
        return report

    def begin(self, name: str, started: Started) -> None:
        """Take down what is timed, unless an earlier start has begun with it on such a device."""
        device = device_name(self.device)
        if name in self.results.paces and self.results.paces[name].device == device:
            return
        spec, recipe = self.scale.training(name), DATASETS[self.scale.recipe]
        blueprint = Blueprint(self.scale.architecture, recipe.shape, recipe.classes)
        self.results.paces[name] = Pace(
            device=device,
            precision=resolve(spec.precision, self.device),
            operations=count_operations(spec, blueprint),
            images=started.train_examples,
            steps_per_epoch=started.total_steps // spec.epochs,
        )

    def compare(self, name: str, norm: Norm) -> None:
        """Run AutoAttack, ours and pyautoattack, on the model of a row."""
        path = self.base() if name == "base" else self.train(name, self.inputs())
        model = checkpoint.load(path)[0].requires_grad_(requires_grad=False).to(self.device)
        images, labels = self.test.images(), self.test.labels
        case = Case(name, model, images, labels, self.scale.eps, self.scale.compared_protocol)
        with full_float32():
            # The first call on a device also waits for what it loads and tries out.
            model(images)
            cell = compare(case, norm, own=self.own)
        row = asdict(cell) | {"fewer": round(cell.fewer, 2), "faster": round(cell.faster, 2)}
        self.results.cells.append({**row, "device": device_name(self.device)})
        print(show(cell), flush=True)

    @cached_property
    def test(self) -> Split:
        """The test points on which ours and pyautoattack run."""
        part = data.load(self.scale.dataset, self.archive).test
        assert isinstance(part, Split)
        return part.first(self.scale.compared).to(self.device)


def main() -> None:
    """Do what is missing in the minutes that there are; end with status 75 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="ARCHIVE", help="CIFAR-10 as JPEGs in folders")
    parser.add_argument("--tiny", action="store_true", help="do all of it at the size of a CPU, on the digits")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="stop in time to be done after so many; by default 9"
    )
    parser.add_argument("--output", type=Path, help="the JSON file; by default in benchmarks/results")
    parser.add_argument("--work", type=Path, help="folder for what is under way; by default in runs")
    parser.add_argument("--join", type=Path, metavar="FILE", help="only put the base together, at FILE")
    parser.add_argument("--device", type=torch.device, help="where to compute; by default the GPU")
    parser.add_argument("--base-epochs", type=int, help="epochs of the base's training; by default 30")
    parser.add_argument("--train-examples", type=int, help="training images; by default all")
    parser.add_argument("--points", type=int, help="test points of the table; by default 1000")
    parser.add_argument("--compared", type=int, help="test points for ours against pyautoattack; by default 250")
    parser.add_argument("--own", action="store_true", help="hold pyautoattack against itself, too")
    options = parser.parse_args()
    asked = {name: getattr(options, name) for name in ("base_epochs", "train_examples", "points", "compared")}
    scale = replace(TINY if options.tiny else FULL, **{name: value for name, value in asked.items() if value})
    stem = "gpu-tiny" if options.tiny else "gpu"
    results = Results(options.output or RESULTS / f"{stem}.json", scale)
    results.read()
    if options.join:
        if not results.base:
            raise SystemExit(f"{results.path} knows of no base")
        join(results.base, results.path.parent, options.join)
        return
    if not options.tiny and not options.cifar:
        parser.error("give the images with --cifar, or take --tiny")
    device = options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not (options.tiny or options.device):
        parser.error("there is no GPU here: take --tiny, or --device cpu and a few days")
    work = options.work or Path("runs") / stem
    bench = Bench(results, work, options.cifar, device, Budget(options.minutes), options.own)
    try:
        bench.run()
    except OutOfTime:
        results.write()
        print("the minutes are over; the same command goes on from here")
        sys.exit(ExitStatus.PAUSED)
    print("\n".join(results.page()))


if __name__ == "__main__":
    main()
