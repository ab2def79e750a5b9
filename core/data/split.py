"""One part of a data set that is small enough to live on the device: pixels as bytes, and labels."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.data.augmentation import augment
from core.schema.catalog import Augmentation


class Batch(NamedTuple):
    """What a training step takes in."""

    images: Tensor
    """(batch, channels, height, width) in [0, 1], in torch's default dtype."""
    labels: Tensor
    """(batch,) int64 class indices."""


@dataclass(frozen=True)
class Split:
    """Images and labels of the training or the test part."""

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
        """Move the part to a device."""
        return Split(self.pixels.to(device), self.labels.to(device), self.white)

    def first(self, examples: int) -> "Split":
        """Take the first so many examples, or all where there are fewer."""
        return Split(self.pixels[:examples], self.labels[:examples], self.white)

    def pick(self, index: Tensor) -> "Split":
        """Take the examples at `index` (n,)."""
        return Split(self.pixels[index], self.labels[index], self.white)

    def read(self, index: Tensor) -> "Split":
        """Hold the examples at `index` (n,) in memory, as they are; the same as `pick`, for they are there already."""
        return self.pick(index)

    def joined(self, other: "Split") -> "Split":
        """Put the examples of another part, of the same shape and white, behind these."""
        assert self.white == other.white, "bytes of one meaning only"
        return Split(torch.cat([self.pixels, other.pixels]), torch.cat([self.labels, other.labels]), self.white)

    def feed(self, digest: "hashlib._Hash") -> None:
        """Hash all images and labels, in order: the same data gives the same hash, wherever it came from."""
        digest.update(repr((tuple(self.pixels.shape), self.white)).encode())
        digest.update(self.pixels.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())

    def images(self) -> Tensor:
        """Return the images as (examples, channels, height, width) in [0, 1], in torch's default dtype."""
        return self.pixels.to(torch.get_default_dtype()) / self.white

    def batches(
        self,
        order: Iterable[Tensor],
        augmentation: Augmentation,
        generator: torch.Generator,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[Batch]:
        """Hand out a batch for each index (n,) in `order`, augmented, on the device.

        Of several ranks each gets its part of every batch, and all draw for the whole of it, so that together they see
        what one alone would. Between two batches the generator is where a run that goes on from there has to start.
        """
        for index in order:
            batch = self.pick(index.to(self.labels.device))
            images = augment(batch.images(), augmentation, generator)
            yield Batch(images.tensor_split(ranks)[rank], batch.labels.tensor_split(ranks)[rank])
