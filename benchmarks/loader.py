"""Measure how fast ImageNet streams, against what training takes in, so that the loader is never what a GPU waits for.

    python -m benchmarks.loader                        this machine, and an accelerator of 400 TFLOP/s by arithmetic
    python -m benchmarks.loader --workers 4 8 16       with so many processes that read
    python -m benchmarks.loader --images 4000 --batch-size 128 --steps 20      on a GPU

Images are written first: JPEGs of 500 x 375 pixels, of about ImageNet's mean size of 110 kB. "images/s" is the stream
alone, with its random resized crops, once it is running; "CPU ms/image" is what one image costs a process, whatever
else the machine does. A training step is single-norm training of a ResNet-50 with the paper's steps (linf 5, l1 15):
"needs here" is what it takes in where it runs, measured without loading; "needs at" is what an accelerator would at a
sustained rate, from the operations of its passes, and "processes" how many it takes to feed that. "waited" is the share
of training time in which no batch was there.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from core import checkpoint, data
from core.data.split import Batch
from core.data.stream import Stream
from core.schema.catalog import DATASETS, Norm
from core.schema.method import Method
from core.training.methods import build
from core.training.methods.contract import whole

ENTRY = DATASETS["imagenet"]
NORMS: tuple[Norm, ...] = ("linf", "l1")


@dataclass(frozen=True)
class Reading:
    """The stream alone."""

    workers: int
    images_per_second: float
    first_batch_seconds: float
    """Until the first batch is there, the start of the processes included."""


@dataclass(frozen=True)
class Need:
    """What training with one norm takes in."""

    norm: Norm
    attack_steps: int
    gigaflop_per_image: float
    """Operations of a training step, the attack's included; a multiplication and an addition are two."""
    images_per_second: float
    """On this device, without loading."""
    waited: float
    """Share of the time of streamed training that was spent waiting for a batch."""
    accelerator_images_per_second: float
    """At the accelerator's rate."""
    processes: float
    """That feed the accelerator, by their CPU time for an image."""


def write_images(folder: Path, count: int) -> int:
    """Write `count` JPEGs in two classes, and a test image of each; return their mean size in bytes."""
    sizes = []
    for number in range(count + 2):
        content = _photograph(number)
        sizes.append(len(content))
        part = "val" if number >= count else "train"
        path = folder / part / f"n{number % 2:08}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sum(sizes) // len(sizes)


def _photograph(number: int) -> bytes:
    """Make a JPEG of noise at several scales, which compresses about as badly as a photograph."""
    draw = np.random.default_rng(number)
    pixels = np.zeros((375, 500, 3))
    for scale, weight in ((1, 0.25), (5, 0.2), (25, 0.25), (75, 0.3)):
        layer = Image.fromarray(draw.integers(0, 256, (375 // scale, 500 // scale, 3), dtype=np.uint8))
        pixels += weight * np.asarray(layer.resize((500, 375)))
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def endless(train: Stream, batch_size: int) -> Iterator[Batch]:
    """Stream epoch after epoch in one run of the processes."""
    order = [index for _ in range(1000) for index in torch.randperm(len(train)).split(batch_size)]
    return train.batches(order, ENTRY.augmentation, torch.Generator().manual_seed(0))


def cost(train: Stream, batch_size: int, batches: int) -> float:
    """Measure the CPU seconds of an image, in this process."""
    here = endless(replace(train, workers=0), batch_size)
    next(here)
    begun, images = time.process_time(), 0
    for _ in range(batches):
        images += len(next(here).labels)
    return (time.process_time() - begun) / images


def read(train: Stream, workers: int, batch_size: int, seconds: float) -> Reading:
    """Stream for so long once the processes run."""
    begun = time.monotonic()
    batches = endless(replace(train, workers=workers), batch_size)
    next(batches)
    first = time.monotonic() - begun
    # What was read ahead while nobody asked must not count.
    for _ in range(2 * workers):
        next(batches)
    begun, images = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        images += len(next(batches).labels)
    rate = images / (time.monotonic() - begun)
    return Reading(workers=workers, images_per_second=round(rate, 1), first_batch_seconds=round(first, 2))


class Trainer:
    """Single-norm training of a ResNet-50."""

    def __init__(self, norm: Norm, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = resnet50().to(device, memory_format=torch.channels_last)
        self._attack_steps = ENTRY.steps[norm]
        method = Method(name="single", norms=(norm,), steps={norm: self._attack_steps})
        self._method = build(method, ENTRY.eps, torch.Generator())
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def step(self, batch: Batch) -> None:
        """Take one training step, and wait for its end."""
        result = self._method(self.model, batch, whole(batch), {})
        self._optimizer.zero_grad()
        result.loss.backward()
        self._optimizer.step()
        result.loss.item()

    def operations(self, batch: Batch) -> float:
        """Count the operations of a training step for each image.

        The attack looks steps + 1 times and goes back to the images `steps` times; the update goes forward, and back to
        inputs and weights, which is as much again for each.
        """
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(batch.images)
        return (2 * self._attack_steps + 4) * counter.get_total_flops() / len(batch.labels)


def measure(
    train: Stream, norm: Norm, batch_size: int, steps: int, *, teraflop: float, seconds_per_image: float
) -> Need:
    """Train on one batch again and again, then on streamed ones."""
    trainer = Trainer(norm, train.device)
    batches = endless(train, batch_size)
    batch = next(batches)
    operations = trainer.operations(batch)
    trainer.step(batch)
    begun = time.monotonic()
    for _ in range(steps):
        trainer.step(batch)
    rate = steps * batch_size / (time.monotonic() - begun)
    begun, waited = time.monotonic(), 0.0
    for _ in range(steps):
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        trainer.step(batch)
    fed = teraflop * 1e12 / operations
    return Need(
        norm=norm,
        attack_steps=ENTRY.steps[norm],
        gigaflop_per_image=round(operations / 1e9, 1),
        images_per_second=round(rate, 2),
        waited=round(waited / (time.monotonic() - begun), 4),
        accelerator_images_per_second=round(fed, 1),
        processes=round(fed * seconds_per_image, 1),
    )


def main() -> None:
    """Print tables, and write them as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="JPEGs to write and stream")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of processes; by default 0, 1, 2, 4, ... cores")
    parser.add_argument("--seconds", type=float, default=5, help="how long each number of processes reads")
    parser.add_argument("--read-batch-size", type=int, default=32, help="images per batch when only reading")
    parser.add_argument("--batch-size", type=int, default=4, help="images per training step")
    parser.add_argument("--steps", type=int, default=2, help="training steps to time")
    parser.add_argument("--teraflop", type=float, default=400, help="an accelerator's sustained rate in TFLOP/s")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0))
    numbers = options.workers or [0, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        mean = write_images(folder, options.images)
        train = data.load("imagenet", folder).train.to(device)
        assert isinstance(train, Stream)
        per_image = cost(train, options.read_batch_size, 5)
        machine = f"{cores} cores, {device}"
        print(f"{options.images} JPEGs of {mean / 1e3:.0f} kB, {1e3 * per_image:.1f} CPU ms/image; {machine}")
        print(f"\n{'workers':>8}{'images/s':>10}{'first batch':>13}")
        readings = []
        for workers in numbers:
            row = read(train, workers, options.read_batch_size, options.seconds)
            readings.append(row)
            print(f"{workers:8}{row.images_per_second:10.1f}{row.first_batch_seconds:11.2f} s", flush=True)
        rate = f"needs at {options.teraflop:g} TFLOP/s"
        print(f"\n{'norm':6}{'GFLOP/image':>12}{'needs here':>12}{'waited':>9}{rate:>25}{'processes':>11}")
        needs = []
        for norm in NORMS:
            given = {"teraflop": options.teraflop, "seconds_per_image": per_image}
            need = measure(train, norm, options.batch_size, options.steps, **given)
            needs.append(need)
            print(
                f"{norm:6}{need.gigaflop_per_image:12.1f}{need.images_per_second:12.2f}{need.waited:9.2%}"
                f"{need.accelerator_images_per_second:25.0f}{need.processes:11.1f}",
                flush=True,
            )
    if options.output:
        content = {
            # What else the machine did counts: images/s and "needs here" are lower for it.
            "machine": {"cores": cores, "load": os.getloadavg()[0], "device": str(device), **checkpoint.versions()},
            "images": options.images,
            "mean_bytes": mean,
            "cpu_milliseconds_per_image": round(1000 * per_image, 2),
            "teraflop": options.teraflop,
            "reading": [asdict(row) for row in readings],
            "needs": [asdict(need) for need in needs],
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
