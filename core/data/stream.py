"""A part of a data set that does not fit the memory: image files, read and brought to one size by worker processes.

The workers return bytes in page-locked memory; the device converts them to numbers in [0, 1]. The augmentation of an
image depends on the seed of its batch and its index in the set, not on the worker that reads it. So a run gives the
same images with any number of workers, and when it continues in the middle of an epoch.

A file that cannot be read is left out when it is met: an evaluation has one image less, and in a training batch the
next image of the set takes its place, so that batches keep their size in every process.
"""

import hashlib
import os
import random
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from core.data.image_decoding import Unusable, decode
from core.data.left_out import LeftOut
from core.data.preprocessing import preprocess
from core.data.spans import Span, read_span
from core.data.split import WHOLE, Batch, ProcessShare, Split
from core.schema.catalog import Augmentation
from core.schema.errors import UserError
from core.schema.preprocessing import Preprocessing

SEPARATOR = "\0"
"""What separates the path of an archive from the name of a file in it: no path has it."""
_CHUNK = 50
"""Images per job of a worker, for evaluation."""

_MOST_WORKERS = 16
"""More workers only take memory: no training step needs them (benchmarks/loader.py)."""

_MOST_GAPS = 100
"""Unreadable files in a row that the next readable one stands in for; the run ends where there are more."""


@dataclass(frozen=True)
class Stream:
    """Image files, brought to one size; implements `core.data.labelled_images.LabelledImages`."""

    root: Path
    """The folder that the names are relative to."""
    names: np.ndarray
    """(examples,) paths below `root`, as bytes: an array, since a list would be copied into each worker process. Of a
    file in an archive, the archive's path, the separator and the file's name."""
    sizes: np.ndarray
    """(examples,) int64 bytes of each file."""
    spans: np.ndarray
    """(examples, 3) int64: where each file lies in its archive, as a `Span`; not used for files of a folder."""
    labels: Tensor
    """(examples,) int64 class indices."""
    size: tuple[int, int]
    """Height and width of every image."""
    channels: int = 3
    """3, or 1 where all images are grey."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """How images are brought to that size."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """The device of the batches."""
    workers: int | None = None
    """Worker processes; None for one per core, 0 to read in this process."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """The files that cannot be read, shared by all parts of a data set."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.channels, *self.size

    def to(self, device: torch.device) -> "Stream":
        """Return the same files; their batches lie on the device."""
        return replace(self, device=device)

    def pick(self, index: Tensor) -> "Stream":
        """Return the examples at `index` (n,)."""
        chosen = index.cpu()
        return replace(
            self,
            names=self.names[chosen],
            sizes=self.sizes[chosen],
            spans=self.spans[chosen],
            labels=self.labels[chosen],
        )

    def first(self, examples: int) -> Split:
        """Read the first examples into memory: this many, or all where there are fewer."""
        return self.read(torch.arange(min(examples, len(self))))

    def read(self, index: Tensor) -> Split:
        """Read the examples at `index` (n,) into memory, preprocessed as for evaluation.

        Those that cannot be read are left out. Raises BadDataset when these are too many.
        """
        jobs = [_Job(0, tuple(chunk.tolist()), "none", fills_gaps=False) for chunk in index.split(_CHUNK)]
        pixels, labels = zip(*self._load(jobs, self._number_of_workers(1)), strict=True)
        return Split(_channels_first(torch.cat(pixels)), torch.cat(labels)).to(self.device)

    def with_labels(self, labels: Tensor) -> "Stream":
        """Return the same images with other labels (examples,)."""
        return replace(self, labels=labels)

    def concat(self, other: "Stream") -> "Stream":
        """Return these examples followed by those of another stream."""
        names = [
            np.array([os.fsencode(part.root / os.fsdecode(name)) for name in part.names]) for part in (self, other)
        ]
        return replace(
            self,
            root=Path(),
            names=np.concatenate(names),
            sizes=np.concatenate([self.sizes, other.sizes]),
            spans=np.concatenate([self.spans, other.spans]),
            labels=torch.cat([self.labels, other.labels]),
        )

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add the names, sizes and labels of the files to a hash; hashing their pixels would take hours."""
        digest.update(repr(("stream", len(self), self.size, self.channels, self.preprocessing)).encode())
        # The name of an archive is no part of its contents.
        names = [name.rpartition(SEPARATOR.encode())[2] for name in self.names.tolist()]
        for content in (b"\0".join(names), self.sizes.tobytes(), self.labels.numpy().tobytes()):
            digest.update(content)

    def batches(
        self, order: Iterable[Tensor], augmentation: Augmentation, generator: Generator, share: ProcessShare = WHOLE
    ) -> Iterator[Batch]:
        """Yield one augmented batch for each index (n,) in `order`; see `BatchSource.batches`.

        Raises BadDataset when too many files cannot be read.
        """
        # The workers read ahead: the seeds of batches that are not yet yielded come from a copy of the generator.
        ahead = generator.clone_state()
        own = (share.of(indices) for indices in order)
        jobs = [_Job(_draw_seed(ahead), tuple(indices.tolist()), augmentation, fills_gaps=True) for indices in own]
        for pixels, labels in self._load(jobs, self._number_of_workers(share.world_size)):
            _draw_seed(generator)
            images = _channels_first(pixels.to(self.device, non_blocking=True)).to(torch.get_default_dtype())
            yield Batch(images / 255, labels.to(self.device, non_blocking=True))

    def _number_of_workers(self, world_size: int) -> int:
        if self.workers is not None:
            return self.workers
        if not _can_open_sockets():
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(min(cores // world_size, _MOST_WORKERS), 1)

    def _load(self, jobs: "Sequence[_Job]", workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batch after batch: pixels (n, height, width, channels) uint8, and labels (n,)."""
        loader = DataLoader(
            _Files(self),
            # Without a batch size, DataLoader passes each job to a worker unchanged.
            sampler=jobs,
            batch_size=None,
            num_workers=min(workers, len(jobs)),
            pin_memory=self.device.type == "cuda",
            # DataLoader seeds its workers; without this it would draw the seed from the global random state.
            generator=Generator(),
        )
        try:
            for found in loader:
                for name, reason in found.damaged:
                    self.left_out.add(name, reason)
                self.left_out.check()
                yield found.pixels, found.labels
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise UserError(
                f"a process that reads images died: {str(error).splitlines()[0]}",
                hint="give the container more shared memory, or read with fewer --workers",
                field="workers",
            ) from error


def _can_open_sockets() -> bool:
    """Whether worker processes can pass on images: they do so by local sockets, and a confined run may open none."""
    try:
        socket.socket(socket.AF_UNIX).close()
    except PermissionError:
        return False
    return True


def _channels_first(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).contiguous()


def _draw_seed(generator: Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


class _Job(NamedTuple):
    """A batch for a worker to read."""

    seed: int
    indices: tuple[int, ...]
    augmentation: Augmentation
    fills_gaps: bool
    """Whether the next image of the set takes the place of one that cannot be read."""


class _Read(NamedTuple):
    """A batch that a worker has read."""

    pixels: Tensor
    """(n, height, width, channels) uint8."""
    labels: Tensor
    """(n,) int64."""
    damaged: list[tuple[str, str]]
    """Name and reason of each file that cannot be read."""


class _Files(Dataset):
    """The data set inside a worker process."""

    def __init__(self, part: Stream) -> None:
        self._root, self._names, self._sizes, self._spans = part.root, part.names, part.sizes, part.spans
        self._labels, self._size, self._channels = part.labels, part.size, part.channels
        self._preprocessing = part.preprocessing

    def __getitem__(self, job: _Job) -> _Read:
        views: list[np.ndarray] = []
        read: list[int] = []
        damaged: list[tuple[str, str]] = []
        for index in job.indices:
            tries = range(index, index + 1 + (_MOST_GAPS if job.fills_gaps else 0))
            for at in (number % len(self._names) for number in tries):
                try:
                    views.append(self._read(at, job.augmentation, random.Random(f"{job.seed}/{at}")))
                except Unusable as reason:
                    damaged.append((os.fsdecode(self._names[at]).rpartition(SEPARATOR)[2], str(reason)))
                else:
                    read.append(at)
                    break
        pixels = np.stack(views) if views else np.empty((0, *self._size, self._channels), dtype=np.uint8)
        return _Read(torch.from_numpy(pixels), self._labels[read], damaged)

    def _read(self, at: int, augmentation: Augmentation, draw: random.Random) -> np.ndarray:
        """Read the view of one image, (height, width, channels). Raises Unusable."""
        file, _, inner = os.fsdecode(self._names[at]).partition(SEPARATOR)
        span = Span(*self._spans[at].tolist()) if inner else None
        image = decode(read_span(self._root / file, span, int(self._sizes[at])), most_pixels=None).image
        if self._channels == 1 and image.mode != "L":
            raise Unusable("it is in colour, but the images that were looked at first are grey")
        view = np.asarray(self._view(image if self._channels == 1 else image.convert("RGB"), augmentation, draw))
        return view[:, :, None] if self._channels == 1 else view

    def _view(self, image: Image.Image, augmentation: Augmentation, draw: random.Random) -> Image.Image:
        """Bring an image to its size: as the preprocessing says, and for training at random. Raises Unusable."""
        height, width = self._size
        if self._preprocessing.image_size is None and image.size != (width, height):
            raise Unusable(f"it is not {width} x {height}, the size of the image that was looked at first")
        match augmentation:
            case "none":
                return preprocess(image, self._preprocessing)
            case "crop-flip":
                # A crop beyond the border is black there.
                margin = max(height, width) // 8
                left, top = (int(draw.random() * (2 * margin + 1)) - margin for _ in range(2))
                box = (left, top, left + width, top + height)
                return _flip(preprocess(image, self._preprocessing).crop(box), draw)
            case "resized-crop-flip":
                inside = image.crop(draw_box(image.width, image.height, draw))
                return _flip(inside.resize((width, height), Image.Resampling.BILINEAR), draw)


def draw_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom), in pixels, of Inception's random resized crop (Szegedy et al. 2015).

    It has 8 to 100 % of the area and an aspect ratio from 3:4 to 4:3. After ten boxes that do not lie inside the image,
    it is the largest centred box with such a ratio.
    """
    narrowest, widest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * (0.08 + 0.92 * draw.random())
        shape = exp(log(narrowest) + (log(widest) - log(narrowest)) * draw.random())
        across, down = round(sqrt(area * shape)), round(sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(draw.random() * (width - across + 1)), int(draw.random() * (height - down + 1))
            return left, top, left + across, top + down
    across = min(width, round(height * widest))
    down = min(height, round(width / narrowest))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _flip(image: Image.Image, draw: random.Random) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image
