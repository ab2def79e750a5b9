"""The protocols of images with labels: one part of a data set, and the source of a run's training batches.

`Split` (in memory) and `Stream` (read from files) implement `LabelledImages`. `TrainingSet`, which puts two of them
together, implements `BatchSource`.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol, Self

import torch
from torch import Generator, Tensor

from core.data.split import WHOLE, Batch, ProcessShare, Split
from core.schema.catalog import Augmentation


class BatchSource(Protocol):
    """Images of one shape that training takes its batches from."""

    def __len__(self) -> int:
        """Return the number of images of an epoch."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    def to(self, device: torch.device) -> Self:
        """Return the same images; their batches lie on the device."""

    def batches(
        self, order: Iterable[Tensor], augmentation: Augmentation, generator: Generator, share: ProcessShare = WHOLE
    ) -> Iterator[Batch]:
        """Yield one augmented batch for each index (n,) in `order`.

        generator: on the CPU; the source of the augmentation's random numbers. Between two batches it is in the state
        from which a run that continues there has to start. share: the part of every batch to yield; the draws are those
        for the whole batch, so that all processes together see what one alone would.

        Raises BadDataset when an image cannot be read.
        """


class LabelledImages(BatchSource, Protocol):
    """The training or the test part of a data set, in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """(examples,) int64 class indices."""

    def first(self, examples: int) -> Split:
        """Read the first examples into memory: this many, or all where there are fewer."""

    def read(self, index: Tensor) -> Split:
        """Read the examples at `index` (n,) into memory, preprocessed as for evaluation."""

    def pick(self, index: Tensor) -> Self:
        """Return the examples at `index` (n,)."""

    def with_labels(self, labels: Tensor) -> Self:
        """Return the same images with other labels (examples,)."""

    def concat(self, other: Self) -> Self:
        """Return these examples followed by those of another part of the same kind and shape."""

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add the examples to a hash, in order: equal data give equal hashes."""
