"""Time Sparse-RS batched and point by point, and print what each takes in passes and seconds.

    python -m benchmarks.threats_speed                      l0, patch and frame on the digits base
    python -m benchmarks.threats_speed --cifar ARCHIVE      on the small base for CIFAR-10 (JPEG)
    python -m benchmarks.threats_speed --cifar ARCHIVE --only l0 --no-loop --points 1000 --queries 5000

A loop over images calls the same attack with one image each. "passes" are images that went through the model, "most" is
what they would be if no point left the search and no move was known to be vain. "model" is the share of the time that
is spent in the model, below which no other search of as many passes can get. Both runs give the same verdicts but for
rounding; "flips" counts the points on which they differ. --no-loop leaves the loop out.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint, data
from core.attacks import Attack, AttackOptions
from core.attacks.threat import Threat
from core.models.folding import folded
from core.threats.frames import FrameThreat, frame
from core.threats.patches import PatchThreat, patch
from core.threats.pixels import PixelsThreat, sparse_pixels
from core.threats.random_search import QUERIES

# For images of 8 x 8 and of 32 x 32; about half of the points of the bases are fooled.
BUDGETS: dict[str, tuple[Threat, Threat]] = {
    "l0": (PixelsThreat(1), PixelsThreat(9)),
    "patch": (PatchThreat(2), PatchThreat(5)),
    "frame": (FrameThreat(1), FrameThreat(1)),
}
ATTACKS: dict[str, Attack[Threat, ...]] = {"l0": sparse_pixels, "patch": patch, "frame": frame}

# Points that go through the model together: as many as a processor's cache holds.
_CHUNK = 128


@dataclass(frozen=True)
class Cost:
    """The result of an attack, and what it took."""

    robust: Tensor
    """(points,) bool."""
    passes: int
    """Images that went through the model."""
    seconds: float
    in_model: float
    """Seconds spent in the model."""


class Timed(nn.Module):
    """A model that counts the images that it is given, and the seconds that they take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes, self.seconds = 0, 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits (batch, classes)."""
        begun = time.perf_counter()
        logits = self.model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        self.seconds += time.perf_counter() - begun
        self.passes += len(images)
        return logits


def batched(model: nn.Module, images: Tensor, labels: Tensor, name: str, threat: Threat, queries: int) -> Tensor:
    """Attack all points at once, and give the robust ones (points,) bool."""
    options = AttackOptions(chunk_size=_CHUNK)
    return ATTACKS[name](model, images, labels, threat, options, queries=queries).robust


def per_image_loop(model: nn.Module, images: Tensor, labels: Tensor, name: str, threat: Threat, queries: int) -> Tensor:
    """Attack one point after the other, and give the robust ones (points,) bool."""
    one_by_one = zip(images.split(1), labels.split(1), strict=True)
    return torch.cat([ATTACKS[name](model, *point, threat, queries=queries).robust for point in one_by_one])


def measure(run: Callable[..., Tensor], model: nn.Module, images: Tensor, labels: Tensor, *settings: object) -> Cost:
    """Time one of the two."""
    timed = Timed(model)
    begun = time.perf_counter()
    robust = run(timed, images, labels, *settings)
    seconds = time.perf_counter() - begun
    return Cost(robust, timed.passes, seconds, timed.seconds)


def show(kind: str, cost: Cost, most: int) -> str:
    """Lay out a cost as a row."""
    points, robust = len(cost.robust), int(cost.robust.sum())
    return (
        f"{kind:28}{points:7}{robust:8}{cost.passes:10}{most:10}{cost.seconds:9.1f}{points / cost.seconds:10.2f}"
        f"{cost.in_model / cost.seconds:8.0%}"
    )


def load(cifar: Path | None, points: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """Give a base, folded as for an evaluation, and test images and labels."""
    base, dataset = ("cifar10-small-linf", "cifar10-jpeg") if cifar else ("digits-cnn-linf", "digits")
    model = checkpoint.load(checkpoint.base_model_file(base, None))[0].to(device).eval()
    part = data.load(dataset, cifar).test.first(points)
    images = part.images().to(device)
    return folded(model, images), images, part.labels.to(device)


def main() -> None:
    """Print a row per threat and way, and how many times as fast the batch is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="the CIFAR-10 (JPEG) archive")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--queries", type=int, default=QUERIES // 10)
    parser.add_argument("--only", choices=list(ATTACKS), help="only this threat")
    parser.add_argument("--no-loop", action="store_true", help="only all points at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model, images, labels = load(options.cifar, options.points, torch.device(options.device))
    with torch.no_grad():
        right = int((model(images).argmax(1) == labels).sum())
    print(f"{right} of {len(images)} points are right, {torch.get_num_threads()} threads, {options.queries} queries")
    print(f"{'':28}{'points':>7}{'robust':>8}{'passes':>10}{'most':>10}{'seconds':>9}{'points/s':>10}{'model':>8}")
    for name, budgets in BUDGETS.items():
        if options.only not in (None, name):
            continue
        threat = budgets[1 if options.cifar else 0]
        most = len(images) + right * options.queries
        together = measure(batched, model, images, labels, name, threat, options.queries)
        print(show(f"{name} {threat}", together, most), flush=True)
        if options.no_loop:
            continue
        alone = measure(per_image_loop, model, images, labels, name, threat, options.queries)
        flips = int((alone.robust != together.robust).sum())
        print(show("  a loop over images", alone, most))
        print(f"  {alone.seconds / together.seconds:.1f} times as fast, {flips} flips", flush=True)


if __name__ == "__main__":
    main()
