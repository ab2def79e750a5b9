"""Compare our AutoAttack with pyautoattack: the verdict of every point, image passes, and time, in one run.

    python -m benchmarks.autoattack                          digits: a linf base, after E-AT, natural; 3 and 20 classes;
                                                             the base with its gradients hidden (--only hidden)
    python -m benchmarks.autoattack --cifar ARCHIVE          and preact-resnet-8 on CIFAR-10 (JPEG), trained and not
    python -m benchmarks.autoattack --peers                  and APGD of adv-lib and torchattacks, where installed:
                                                             pip install adv-lib==0.2.8 torchattacks==3.5.1

Same points, seed and logical batch; each as its users run it, pyautoattack on the model as it was loaded. "flips"
counts the points on which two runs disagree: ours and pyautoattack, pyautoattack and itself with the model computing
its batches in halves, which is the noise to judge ours by. A pass is one image through the model, forward or backward.
Cells already in the output file are not run again.
"""

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from core import checkpoint, data
from core.attacks import Attack, AttackOptions, Returning
from core.attacks.apgd import apgd, depends_on_last_bit
from core.attacks.forward import predict
from core.attacks.reference import NAMES
from core.attacks.threat import LpThreat
from core.evaluation.autoattack import attacks_of
from core.models import Blueprint, build
from core.models.folding import folded
from core.schema.catalog import DATASETS, NORMS, Norm
from core.schema.protocols import AttackName, Protocol
from core.schema.spec import parse
from core.training.run import fine_tune

RESULTS = Path(__file__).parent / "results" / "autoattack.json"


@dataclass(frozen=True)
class Case:
    """A model, points, and what is done to them."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    eps: dict[Norm, float]
    protocol: Protocol = "standard"

    def attacks(self, norm: Norm) -> dict[AttackName, Attack[LpThreat, ...]]:
        """Name the attacks, but for the one that pyautoattack cannot run: its targeted DLR loss takes four classes."""
        with torch.no_grad():
            few = self.model(self.images[:1]).shape[1] < 4
        return {
            name: attack for name, attack in attacks_of(self.protocol, norm).items() if not (few and name == "apgd-t")
        }


Named = tuple[str, Callable[[str], Case]]
"""The name of a case, and what makes it, which may have to train its model first."""


@dataclass(frozen=True)
class Cost:
    """What one evaluation took."""

    forward: int
    """Images that went forward through the model."""
    backward: int
    """Images whose gradient was computed."""
    seconds: float
    by_attack: dict[str, float]
    """Seconds of each attack."""

    @property
    def passes(self) -> int:
        """Image passes, forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Cell:
    """One norm on one model."""

    model: str
    norm: Norm
    eps: float
    protocol: Protocol
    points: int
    classes: int
    clean: int
    ours: int
    """Points robust by us."""
    theirs: int
    """Points robust by pyautoattack."""
    flips: int
    """Points on which we and pyautoattack disagree."""
    their_own_flips: int | None
    """Points on which pyautoattack disagrees with itself, the model computing its batches in halves."""
    our_cost: Cost
    their_cost: Cost

    @property
    def faster(self) -> float:
        """How many times less time ours took."""
        return self.their_cost.seconds / self.our_cost.seconds

    @property
    def fewer(self) -> float:
        """How many times fewer image passes ours took."""
        return self.their_cost.passes / self.our_cost.passes


class InHalves(nn.Module):
    """A model that computes its batches in two halves: another physical batch, the same function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        return torch.cat([self.model(half) for half in images.split(max(-(-len(images) // 2), 1))])


class SomeClasses(nn.Module):
    """A model that only tells the first classes apart."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model = model
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        return self.model(images)[:, : self.classes]


class TwoModels(nn.Module):
    """Two models side by side, so twice the classes; the second one's are less likely throughout."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        return torch.cat([self.first(images), self.second(images) - 1], 1)


class Rounded(nn.Module):
    """A model whose logits are rounded to multiples of a step, so that many are equal; the gradient ignores that."""

    def __init__(self, model: nn.Module, step: float) -> None:
        super().__init__()
        self.model = model
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.model(images)
        return logits + ((logits / self.step).round() * self.step - logits).detach()


class Flat(nn.Module):
    """A model whose logits are a small multiple of another's, so that its slopes are about as small as AutoAttack's
    limit for moving a pixel."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.model(images)
        return logits * self.factor


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count images that pass through the model's last linear layer, forward and backward."""
    passes = {"forward": 0, "backward": 0}

    def count(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        passes["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(backward=passes["backward"] + len(gradient)))

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_hook(count)
    yield passes
    handle.remove()


def measure_ours(case: Case, norm: Norm) -> tuple[Tensor, Cost]:
    """Attack a case under one norm as an evaluation does: the verdicts, and what they took."""
    model = copy.deepcopy(case.model).to(memory_format=torch.channels_last)
    images, labels, threat = case.images, case.labels, LpThreat(norm, case.eps[norm])
    by_attack: dict[str, float] = {}
    with counting(model) as passes:
        begun = time.perf_counter()
        robust = predict(model, images).argmax(1) == labels
        quick = folded(model, images)
        for name, attack in case.attacks(norm).items():
            started = time.perf_counter()
            if robust.any():
                searched = model if depends_on_last_bit(name, threat) else quick
                options = AttackOptions(chunk_size=256, checked=True)
                found = Returning(attack.steps(searched, images[robust], labels[robust], threat, options)).finish()
                robust[robust.clone()] = predict(model, found.adversarial).argmax(1) == labels[robust]
            by_attack[name] = round(time.perf_counter() - started, 2)
        seconds = time.perf_counter() - begun
    return robust, Cost(passes["forward"], passes["backward"], round(seconds, 2), by_attack)


def measure_theirs(case: Case, norm: Norm, *, halves: bool = False) -> tuple[Tensor, Cost]:
    """Evaluate a case under one norm by pyautoattack, as its users run it: a model in eval mode, as it was loaded.

    halves: let the model compute its batches in two halves.
    """
    model = InHalves(case.model) if halves else case.model
    images, labels = case.images, case.labels
    by_attack: dict[str, float] = {}
    with counting(model) as passes, torch.random.fork_rng():
        begun = time.perf_counter()
        with torch.no_grad():
            logits = model(images)
        robust = logits.argmax(1) == labels
        attack = AutoAttack(
            model, norm=NAMES[norm], eps=case.eps[norm], seed=0, version="standard", device=images.device
        )
        # It breaks where there are fewer than nine wrong classes.
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, logits.shape[1] - 1)
        for name in case.attacks(norm):
            # One after the other only to time each: it seeds anew for each, and goes on with what stands.
            attack.attacks_to_run = [name]
            started = time.perf_counter()
            if robust.any():
                adversarial, _ = attack.run_standard_evaluation(images[robust], labels[robust], batch_size=len(labels))
                with torch.no_grad():
                    robust[robust.clone()] = model(adversarial).argmax(1) == labels[robust]
            by_attack[name] = round(time.perf_counter() - started, 2)
        seconds = time.perf_counter() - begun
    model.zero_grad()
    return robust, Cost(passes["forward"], passes["backward"], round(seconds, 2), by_attack)


def compare(case: Case, norm: Norm, *, own: bool = True) -> Cell:
    """Evaluate three times: ours, theirs, and theirs in halves."""
    ours, our_cost = measure_ours(case, norm)
    theirs, their_cost = measure_theirs(case, norm)
    halved = measure_theirs(case, norm, halves=True)[0] if own else None
    with torch.no_grad():
        logits = case.model(case.images)
    return Cell(
        model=case.name,
        norm=norm,
        eps=case.eps[norm],
        protocol=case.protocol,
        points=len(case.labels),
        classes=logits.shape[1],
        clean=int((logits.argmax(1) == case.labels).sum()),
        ours=int(ours.sum()),
        theirs=int(theirs.sum()),
        flips=flips(ours, theirs),
        their_own_flips=None if halved is None else flips(theirs, halved),
        our_cost=our_cost,
        their_cost=their_cost,
    )


def flips(one: Tensor, other: Tensor) -> int:
    """Count the points on which two runs disagree."""
    return int((one != other).sum())


def digits_base() -> nn.Module:
    """The shipped digits model."""
    return checkpoint.load(checkpoint.base_model_file("digits-cnn-linf", None))[0]


def made(**spec: Any) -> nn.Module:
    """Train or fine-tune a model on the digits."""
    quick = {"protocol": "fast", "examples": 1, **({} if "architecture" in spec else {"include_base": False})}
    with tempfile.TemporaryDirectory() as folder:
        for _ in fine_tune(parse({"dataset": "digits", "evaluation": quick, **spec}), Path(folder)):
            pass
        return checkpoint.load(Path(folder) / "checkpoint.safetensors")[0]


def digits_cases(points: int) -> Iterator[Named]:
    """The digits: the linf base, that base after E-AT, a natural model, and other numbers of classes."""
    loaded = data.load("digits")
    images, labels = loaded.test.images(), loaded.test.labels
    eps = DATASETS["digits"].eps
    # Three classes of ten have fewer test points than are asked for: parity is as telling on those of training.
    all_images, all_labels = torch.cat([images, loaded.train.images()]), torch.cat([labels, loaded.train.labels])
    some = (all_labels < 3).nonzero().squeeze(1)[:points]

    @cache
    def after_e_at() -> nn.Module:
        return made(base_model="digits-cnn-linf", epochs=3)

    def natural() -> nn.Module:
        return made(kind="train", architecture="digits-cnn", method="nat", epochs=10)

    yield "digits linf base", lambda name: Case(name, digits_base(), images[:points], labels[:points], eps)
    yield "digits after E-AT", lambda name: Case(name, after_e_at(), images[:points], labels[:points], eps)
    yield "digits natural", lambda name: Case(name, natural(), images[:points], labels[:points], eps)
    yield (
        "digits, 3 classes",
        lambda name: Case(name, SomeClasses(digits_base(), 3), all_images[some], all_labels[some], eps),
    )
    yield (
        "digits, 20 classes",
        lambda name: Case(name, TwoModels(digits_base(), after_e_at()), images[:200], labels[:200], eps, "paper"),
    )


def hidden_cases(points: int) -> Iterator[Named]:
    """The linf base with its gradients hidden: many logits are equal, or slopes are near AutoAttack's limit, 1e-8."""
    test = data.load("digits").test.first(points)
    images, labels = test.images(), test.labels
    eps = DATASETS["digits"].eps
    yield "hidden: rounded logits", lambda name: Case(name, Rounded(digits_base(), 1.0), images, labels, eps)
    yield "hidden: flat logits", lambda name: Case(name, Flat(digits_base(), 1e-7), images, labels, eps)


def cifar_cases(archive: Path, base: Path | None, points: int) -> Iterator[Named]:
    """preact-resnet-8 on CIFAR-10 (JPEG): trained, and untrained, whose own answers are then the labels.

    At the `paper` protocol: all of `standard` would take hours on two cores. The untrained one's radii are so large
    that about half of its points fall: verdicts that are all alike could not differ.
    """
    part = data.load("cifar10-jpeg", archive).test.first(points)
    images = part.images()
    large: dict[Norm, float] = {"linf": 27 / 255, "l2": 3.8, "l1": 74.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = build(Blueprint("preact-resnet-8", (3, 32, 32), 10)).eval()
    trained = checkpoint.load(checkpoint.base_model_file("cifar10-small-linf", base))[0]
    eps = DATASETS["cifar10"].eps
    yield "cifar10-small-linf", lambda name: Case(name, trained, images, part.labels, eps, "paper")
    yield "untrained preact-resnet-8", lambda name: Case(name, fresh, images, fresh(images).argmax(1), large, "paper")


def peers(case: Case, norm: Norm) -> dict[str, float]:
    """Seconds of 100 iterations of APGD-CE on all points, by library, those that are installed."""
    images, labels, eps, model = case.images, case.labels, case.eps[norm], case.model
    runs: dict[str, Callable[[], Any]] = {
        "temper": lambda: apgd(model, images, labels, LpThreat(norm, eps), steps=100, goal="error"),
    }
    try:
        from adv_lib.attacks import apgd as their_apgd

        number = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
        runs["adv-lib"] = lambda: their_apgd(
            model, images, labels, eps=eps, norm=number, n_iter=100, n_restarts=1, loss_function="ce"
        )
    except ImportError:
        pass
    try:
        from torchattacks import APGD

        if norm != "l1":
            name = {"linf": "Linf", "l2": "L2"}[norm]
            runs["torchattacks"] = lambda: APGD(model, norm=name, eps=eps, steps=100, n_restarts=1)(images, labels)
    except ImportError:
        pass
    found = {}
    for library, run in runs.items():
        begun = time.perf_counter()
        with torch.random.fork_rng():
            run()
        found[library] = round(time.perf_counter() - begun, 2)
    return found


def show(cell: Cell) -> str:
    """Lay out a cell as a row."""
    ours, theirs = cell.our_cost, cell.their_cost
    own = "-" if cell.their_own_flips is None else cell.their_own_flips
    return (
        f"{cell.model:26}{cell.norm:6}{cell.points:6}{cell.clean:6}{cell.ours:6}{cell.theirs:7}{cell.flips:6}{own:>6}"
        f"{ours.passes / 1e6:9.2f}{theirs.passes / 1e6:7.2f}"
        f"{ours.seconds:9.1f}{theirs.seconds:8.1f}{cell.fewer:8.1f}{cell.faster:8.1f}"
    )


def main() -> None:
    """Print a table, and keep every cell as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="the CIFAR-10 (JPEG) archive")
    parser.add_argument("--base", type=Path, help="weights of the trained preact-resnet-8, if not the shipped ones")
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--only", default="", help="only the models whose name contains this")
    parser.add_argument("--peers", action="store_true", help="time the APGD of other libraries too")
    parser.add_argument("--no-own", action="store_true", help="do not hold pyautoattack against itself")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    empty: dict[str, Any] = {"cells": [], "apgd": []}
    stored = json.loads(options.output.read_text()) if options.output.exists() else empty
    known = {(cell["model"], cell["norm"]) for cell in stored["cells"]}
    cases = [*digits_cases(options.points), *hidden_cases(min(options.points, 60))]
    if options.cifar:
        cases += cifar_cases(options.cifar, options.base, min(options.points, 200))
    print(
        f"{'model':26}{'norm':6}{'points':>6}{'clean':>6}{'ours':>6}{'theirs':>7}{'flips':>6}{'own':>6}"
        f"{'passes/M':>9}{'theirs':>7}{'seconds':>9}{'theirs':>8}{'fewer':>8}{'faster':>8}"
    )
    for name, make in cases:
        wanted = [norm for norm in NORMS if (name, norm) not in known]
        with_peers = options.peers and name == "digits linf base"
        if options.only not in name or not (wanted or with_peers):
            continue
        case = make(name)
        for norm in NORMS:
            if norm in wanted:
                cell = compare(case, norm, own=not options.no_own)
                print(show(cell), flush=True)
                row = asdict(cell) | {"fewer": round(cell.fewer, 2), "faster": round(cell.faster, 2)}
                stored["cells"].append(row)
            if with_peers:
                stored["apgd"] = [row for row in stored["apgd"] if row["norm"] != norm]
                stored["apgd"].append({"model": case.name, "norm": norm, "seconds": peers(case, norm)})
                print(stored["apgd"][-1], flush=True)
            machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), **checkpoint.versions()}
            options.output.write_text(json.dumps({**stored, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
