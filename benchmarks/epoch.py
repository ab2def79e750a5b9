"""Time a training step, and what an epoch of CIFAR-10 would take, against the same algorithm composed from adv-lib.

    python -m benchmarks.epoch                                   preact-resnet-18, batches of 128
    python -m benchmarks.epoch --architecture preact-resnet-8    a small network
    python -m benchmarks.epoch --precision bf16                  ours in bfloat16, as `precision: bf16` of a spec

adv-lib (0.2.8) is no dependency: pip install adv-lib==0.2.8. Without it only ours is timed, and the output says so.

Ours is what `core.training.run` does with a batch. The other is what one would write with adv-lib: eval mode, its
APGD for 10 steps on the cross-entropy, keeping the highest loss, train mode, one step of SGD, on the network as it
is built, in float32.
Both work on the same random images by turns; the figure is the median over the rounds, in seconds of wall time.
E-AT draws one of linf and l1 for each batch, so its epoch lies between theirs; "e-at" is their mean.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import checkpoint
from core.data.split import Batch
from core.models import Blueprint, build
from core.models.precision import full_float32, in_precision, resolve
from core.schema.catalog import DATASETS, Norm
from core.schema.method import Method
from core.schema.spec import Precision
from core.training.methods import build as build_method
from core.training.methods.contract import whole

RESULTS = Path(__file__).parent / "results" / "epoch.json"
TRAINED: tuple[Norm, ...] = ("linf", "l1")
IMAGES = 50_000

Step = Callable[[Tensor, Tensor], None]


def our_step(network: nn.Module, norm: Norm, precision: Precision, device: torch.device) -> Step:
    """Make the step that `core.training.run` takes with the method `single`."""
    model = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
    optimizer = _sgd(model)
    forward = in_precision(model, precision, device)
    method = build_method(Method(name="single", norms=(norm,)), DATASETS["cifar10"].eps, torch.Generator())

    def step(images: Tensor, labels: Tensor) -> None:
        batch = Batch(images, labels)
        optimizer.zero_grad()
        method(forward, batch, whole(batch), {}).total().backward()
        optimizer.step()

    return step


def composed_step(network: nn.Module, norm: Norm) -> Step:
    """Make the step that one would compose from adv-lib's APGD. Raises ImportError where adv-lib is absent."""
    # Not its `apgd`, which ignores n_iter and always takes 100 steps.
    from adv_lib.attacks.auto_pgd import _apgd

    model = copy.deepcopy(network)
    optimizer = _sgd(model)
    radius = DATASETS["cifar10"].eps[norm]
    number = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]

    def step(images: Tensor, labels: Tensor) -> None:
        model.eval()
        eps = torch.full_like(labels, radius, dtype=images.dtype)
        adversarial, *_ = _apgd(model, images, labels, eps=eps, norm=number, n_iter=10, loss_function="ce")
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(adversarial), labels).backward()
        optimizer.step()

    return step


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def measure(
    architecture: str, batch_size: int, rounds: int, precision: Precision, device: torch.device
) -> dict[str, list[float]]:
    """Time every step by turns, after one round that does not count: name -> seconds per round."""
    torch.manual_seed(0)
    network = build(Blueprint(architecture, (3, 32, 32), 10)).to(device)
    steps = {f"ours {norm}": our_step(network, norm, precision, device) for norm in TRAINED}
    try:
        steps |= {f"adv-lib {norm}": composed_step(network, norm) for norm in TRAINED}
    except ImportError:
        print("adv-lib is not installed: only our own steps are timed")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        images = torch.rand(batch_size, 3, 32, 32, device=device)
        labels = torch.randint(10, (batch_size,), device=device)
        for name, step in steps.items():
            _wait_for(device)
            begun = time.perf_counter()
            step(images, labels)
            _wait_for(device)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(seconds: dict[str, list[float]], batch_size: int) -> dict[str, float]:
    """Take medians, an epoch's length, and the ratios that matter."""
    middle = {name: median(times) for name, times in seconds.items()}
    batches = -(-IMAGES // batch_size)
    found = {f"{name}, s/batch": value for name, value in middle.items()}
    ours = sum(middle[f"ours {norm}"] for norm in TRAINED) / 2
    found["ours e-at, s/epoch"] = ours * batches
    found["ours l1 / linf"] = middle["ours l1"] / middle["ours linf"]
    if all(f"adv-lib {norm}" in middle for norm in TRAINED):
        theirs = sum(middle[f"adv-lib {norm}"] for norm in TRAINED) / 2
        found["adv-lib e-at, s/epoch"] = theirs * batches
        found |= {f"faster, {norm}": middle[f"adv-lib {norm}"] / middle[f"ours {norm}"] for norm in TRAINED}
        found["faster, e-at"] = theirs / ours
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Print the figures, and keep them by architecture, batch size and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="preact-resnet-18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    with full_float32():
        seconds = measure(options.architecture, options.batch_size, options.rounds, options.precision, device)
    found = summary(seconds, options.batch_size)
    for name, value in found.items():
        print(f"{name:28}{value:10.3f}")
    precision = resolve(options.precision, device)
    key = f"{options.architecture}, batch {options.batch_size}, {device.type}, {precision}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {"processor": name, "threads": torch.get_num_threads(), **checkpoint.versions()}
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    known[key] = {"rounds": options.rounds, "machine": machine, **found}
    options.output.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
