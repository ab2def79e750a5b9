"""Compare our verdicts with pyautoattack's, point by point, and with what pyautoattack's own verdicts vary by.

    python -m benchmarks.parity                    the digits base, at AutoAttack's settings
    python -m benchmarks.parity --cifar ARCHIVE    and an untrained PreAct ResNet-18 on CIFAR-10 (JPEG), fewer steps

Same points, seed and logical batch; APGD-CE, then targeted APGD. "flips" counts the points on which two runs disagree:
ours and pyautoattack, and pyautoattack and itself at half the batch size, which is the noise floor to judge ours by.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from core import checkpoint, data
from core.attacks.apgd import apgd_ce, apgd_t
from core.catalog import DATASETS, NORMS, Norm
from core.models import Blueprint, build

NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}

Attack = Callable[[Tensor, Tensor], Tensor]
"""Maps images and labels to adversarial images."""


@dataclass(frozen=True)
class Case:
    """A model, points that it has right, and what is done to them."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    eps: dict[Norm, float]
    steps: int
    targets: dict[Norm, int]
    restarts: dict[Norm, int]


@dataclass(frozen=True)
class Row:
    """One norm on one model."""

    model: str
    norm: Norm
    eps: float
    points: int
    ours: int
    """Points robust by us."""
    theirs: int
    """Points robust by pyautoattack."""
    flips: int
    """Points on which we and pyautoattack disagree."""
    their_own_flips: int
    """Points on which pyautoattack disagrees with itself at half the batch size."""
    our_seconds: float
    their_seconds: float


def compare(case: Case, norm: Norm) -> Row:
    """Attack three times: ours, theirs, and theirs in half batches."""
    whole = len(case.labels)
    begun = time.monotonic()
    ours = verdicts(case, _our_attacks(case, norm), batch_size=whole)
    between = time.monotonic()
    theirs = verdicts(case, _their_attacks(case, norm), batch_size=whole)
    ended = time.monotonic()
    halved = verdicts(case, _their_attacks(case, norm), batch_size=whole // 2)
    return Row(
        model=case.name,
        norm=norm,
        eps=case.eps[norm],
        points=whole,
        ours=int(ours.sum()),
        theirs=int(theirs.sum()),
        flips=int((ours != theirs).sum()),
        their_own_flips=int((theirs != halved).sum()),
        our_seconds=round(between - begun, 1),
        their_seconds=round(ended - between, 1),
    )


@torch.no_grad()
def verdicts(case: Case, attacks: list[Attack], *, batch_size: int) -> Tensor:
    """Say of each point (points,) whether it stays right, each attack seeing only what stands."""
    robust = case.model(case.images).argmax(1) == case.labels
    for attack in attacks:
        for batch in robust.nonzero().squeeze(1).split(batch_size):
            adversarial = attack(case.images[batch], case.labels[batch])
            robust[batch] = case.model(adversarial).argmax(1) == case.labels[batch]
    return robust


def _our_attacks(case: Case, norm: Norm) -> list[Attack]:
    def ce(images: Tensor, labels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "steps": case.steps, "restarts": case.restarts[norm]}
        return apgd_ce(case.model, images, labels, norm, case.eps[norm], **options).adversarial

    def targeted(images: Tensor, labels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "steps": case.steps, "targets": case.targets[norm]}
        return apgd_t(case.model, images, labels, norm, case.eps[norm], **options).adversarial

    return [ce, targeted]


def _their_attacks(case: Case, norm: Norm) -> list[Attack]:
    options = {
        "n_iter": case.steps,
        "norm": NAMES[norm],
        "eps": case.eps[norm],
        "seed": 0,
        "device": case.images.device,
        "use_largereps": norm == "l1",
    }
    ce = APGDAttack(case.model, n_restarts=case.restarts[norm], **options)
    targeted = APGDAttack_targeted(case.model, n_target_classes=case.targets[norm], **options)

    def isolated(perturb: Attack) -> Attack:
        def attack(images: Tensor, labels: Tensor) -> Tensor:
            with torch.random.fork_rng():
                return perturb(images, labels)

        return attack

    return [isolated(ce.perturb), isolated(targeted.perturb)]


def digits_case(points: int) -> Case:
    """Take the shipped digits model, test digits, and AutoAttack's own settings."""
    model, _ = checkpoint.load(checkpoint.find_weights("digits-cnn-linf", None))
    part = data.load("digits").test.first(points)
    return Case(
        name="digits-cnn-linf",
        model=model,
        images=part.images(),
        labels=part.labels,
        eps=DATASETS["digits"].eps,
        steps=100,
        targets={"linf": 9, "l2": 9, "l1": 5},
        restarts={"linf": 1, "l2": 1, "l1": 5},
    )


def cifar_case(archive: Path, points: int) -> Case:
    """Take an untrained PreAct ResNet-18, whose own answers on CIFAR-10 (JPEG) images are the labels.

    25 steps, one restart and one target, at radii that leave some points standing: 100 steps of everything would take
    hours on two cores and end with all points fallen or none.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Blueprint("preact-resnet-18", (3, 32, 32), 10)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    images = data.load("cifar10-jpeg", archive).test.first(points).images()
    with torch.no_grad():
        labels = model(images).argmax(1)
    once: dict[Norm, int] = {"linf": 1, "l2": 1, "l1": 1}
    return Case(
        name="untrained preact-resnet-18",
        model=model,
        images=images,
        labels=labels,
        eps={"linf": 3 / 255, "l2": 0.4, "l1": 5.0},
        steps=25,
        targets=once,
        restarts=once,
    )


def main() -> None:
    """Print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="the CIFAR-10 (JPEG) archive")
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--output", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    cases = [digits_case(options.points)]
    if options.cifar:
        cases.append(cifar_case(options.cifar, options.points))
    rows = []
    print(f"{'model':28}{'norm':6}{'points':>7}{'ours':>6}{'theirs':>8}{'flips':>7}{'their own':>11}{'seconds':>16}")
    for case in cases:
        for norm in NORMS:
            row = compare(case, norm)
            rows.append(row)
            seconds = f"{row.our_seconds:.0f} vs {row.their_seconds:.0f}"
            print(
                f"{row.model:28}{row.norm:6}{row.points:7}{row.ours:6}{row.theirs:8}{row.flips:7}"
                f"{row.their_own_flips:11}{seconds:>16}",
                flush=True,
            )
    if options.output:
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), **checkpoint.versions()}
        options.output.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
