"""Compare our verdicts with pyautoattack's, point by point, and with what pyautoattack's own verdicts vary by.

    python -m benchmarks.parity                    the digits base
    python -m benchmarks.parity --cifar ARCHIVE    and an untrained PreAct ResNet-18 on CIFAR-10 (JPEG)

Same points, same seed, same logical batch. "flips" counts the points on which two runs disagree: ours and pyautoattack,
and pyautoattack and itself at half the batch size, which is the noise floor to judge ours by.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from core import checkpoint, data
from core.catalog import DATASETS, NORMS, Norm
from core.evaluation import evaluate
from core.models import Blueprint, build

_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


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


def compare(name: str, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Row:
    """Run the `paper` protocol three times: ours, theirs, and theirs in half batches."""
    whole = len(labels)
    begun = time.monotonic()
    report = evaluate(model, images, labels, {norm: eps}, protocol="paper", batch_size=whole)
    ours = torch.tensor([verdict == "1" for verdict in report.verdicts[norm]])
    our_seconds = time.monotonic() - begun
    begun = time.monotonic()
    theirs = reference(model, images, labels, norm, eps, batch_size=whole)
    their_seconds = time.monotonic() - begun
    halved = reference(model, images, labels, norm, eps, batch_size=whole // 2)
    return Row(
        model=name,
        norm=norm,
        eps=eps,
        points=whole,
        ours=int(ours.sum()),
        theirs=int(theirs.sum()),
        flips=int((ours != theirs).sum()),
        their_own_flips=int((theirs != halved).sum()),
        our_seconds=round(our_seconds, 1),
        their_seconds=round(their_seconds, 1),
    )


def reference(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float, *, batch_size: int) -> Tensor:
    """Return pyautoattack's verdicts (points,) by APGD-CE and targeted APGD, seed 0."""
    attack = AutoAttack(model, norm=_NAMES[norm], eps=eps, version="standard", seed=0, device=images.device)
    attack.attacks_to_run = ["apgd-ce", "apgd-t"]
    with torch.random.fork_rng():
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=batch_size)
    with torch.no_grad():
        return model(adversarial).argmax(1) == labels


def digits_case(points: int) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Take the shipped digits model and test digits."""
    model, _ = checkpoint.load(checkpoint.find_weights("digits-cnn-linf", None))
    part = data.load("digits").test.first(points)
    return "digits-cnn-linf", model, part.images(), part.labels


def cifar_case(archive: Path, points: int) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Take an untrained PreAct ResNet-18, whose own answers on CIFAR-10 (JPEG) images are the labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Blueprint("preact-resnet-18", (3, 32, 32), 10)).eval()
    images = data.load("cifar10-jpeg", archive).test.first(points).images()
    with torch.no_grad():
        labels = model(images).argmax(1)
    return "untrained preact-resnet-18", model, images, labels


def main() -> None:
    """Print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="the CIFAR-10 (JPEG) archive")
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--output", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    cases = [(digits_case(options.points), DATASETS["digits"].eps)]
    if options.cifar:
        cases.append((cifar_case(options.cifar, options.points), DATASETS["cifar10"].eps))
    rows = []
    print(
        f"{'model':28}{'norm':6}{'points':>7}{'ours':>6}{'theirs':>8}{'flips':>7}{'their own flips':>17}{'seconds':>16}"
    )
    for (name, model, images, labels), eps in cases:
        for norm in NORMS:
            row = compare(name, model, images, labels, norm, eps[norm])
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
