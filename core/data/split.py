"""A part of a data set that fits the device's memory: pixels as bytes, and labels."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from core.data.augmentation import augment
from core.schema.catalog import Augmentation


class Batch(NamedTuple):
    """A batch of images with their labels."""

    images: Tensor
    """(batch, channels, height, width) in [0, 1], in torch's default dtype."""
    labels: Tensor
    """(batch,) int64 class indices."""


class ProcessShare(NamedTuple):
    """The part of every batch that one of several processes computes."""

    rank: int = 0
    """The number of the process, from 0."""
    world_size: int = 1
    """The number of processes."""

    def of(self, rows: Tensor) -> Tensor:
        """Return the rows of this process; `rows` has one for each image of the batch."""
        return rows.tensor_split(self.world_size)[self.rank]


WHOLE = ProcessShare()
"""The share of a process that trains alone."""


@dataclass(frozen=True)
class Split:
    """Images and labels in memory; implements `core.data.labelled_images.LabelledImages`."""

    pixels: Tensor
    """(examples, channels, height, width) uint8."""
    labels: Tensor
    """(examples,) int64 class indices."""
    white: int = 255
    """The pixel value that means 1.0."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Split":
        """Move pixels and labels to a device."""
        return Split(self.pixels.to(device), self.labels.to(device), self.white)

    def first(self, examples: int) -> "Split":
        """Return the first examples: this many, or all where there are fewer."""
        return Split(self.pixels[:examples], self.labels[:examples], self.white)

    def pick(self, index: Tensor) -> "Split":
        """Return the examples at `index` (n,)."""
        return Split(self.pixels[index], self.labels[index], self.white)

    def read(self, index: Tensor) -> "Split":
        """Return the examples at `index` (n,); the same as `pick`, since all are in memory."""
        return self.pick(index)

    def with_labels(self, labels: Tensor) -> "Split":
        """Return the same images with other labels (examples,)."""
        return Split(self.pixels, labels, self.white)

    def concat(self, other: "Split") -> "Split":
        """Return these examples followed by those of another split, of the same shape and white."""
        if self.white != other.white:
            raise ValueError("the pixels of both must be in the same units")
        return Split(torch.cat([self.pixels, other.pixels]), torch.cat([self.labels, other.labels]), self.white)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add all images and labels to a hash, in order: equal data give equal hashes, whatever their source."""
        digest.update(repr((tuple(self.pixels.shape), self.white)).encode())
        digest.update(self.pixels.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())

    def images(self) -> Tensor:
        """Return the images as (examples, channels, height, width) in [0, 1], in torch's default dtype."""
        return self.pixels.to(torch.get_default_dtype()) / self.white

    def batches(
        self, order: Iterable[Tensor], augmentation: Augmentation, generator: Generator, share: ProcessShare = WHOLE
    ) -> Iterator[Batch]:
        """Yield one augmented batch for each index (n,) in `order`; see `BatchSource.batches`."""
        for index in order:
            batch = self.pick(index.to(self.labels.device))
            images = augment(batch.images(), augmentation, generator)
            yield Batch(share.of(images), share.of(batch.labels))
