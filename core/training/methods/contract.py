"""The contract of a training method: what it is called with, and what it returns.

A method is called as `method(model, batch, shard, counts)`, attacks the batch and returns a `BatchLoss`, which can be
computed again without another attack. It keeps no state between calls except its random generator: the caller owns the
counts. A batch may be computed in shards, one after the other (gradient accumulation) or in several processes; the
losses of the shards add up to that of the whole batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor, nn

from core.data.split import Batch
from core.schema.catalog import Norm
from core.schema.progress import NormCount

Counts = Mapping[Norm, NormCount]
"""Per attacked norm: the training images attacked in it, and how many of them stayed robust."""


def add_counts(counts: Counts, more: Counts) -> dict[Norm, NormCount]:
    """Add up the counts of each norm; a norm that is in one of the two alone keeps its own."""
    none = NormCount(seen=0, robust=0)
    return {
        norm: NormCount(
            seen=counts.get(norm, none).seen + more.get(norm, none).seen,
            robust=counts.get(norm, none).robust + more.get(norm, none).robust,
        )
        for norm in dict.fromkeys((*counts, *more))
    }


@dataclass(frozen=True)
class Shard:
    """The position of some consecutive images in their batch."""

    first: int
    """Index of the first of them, from 0."""
    batch_size: int
    """Images in the whole batch."""

    def draw(self, count: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Draw random numbers for the whole batch and return the rows of the `count` images of this shard.

        Each image gets the same numbers whatever shard it is computed in. draw: returns a tensor (n, ...) for n images.
        """
        return draw(self.batch_size)[self.first : self.first + count]


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a shard of a batch, with its graph."""

    loss: Tensor
    """Scalar to minimise: a mean over the images of the shard."""
    norm: Norm | None
    """The norm that was attacked; None for none, or for several."""
    counts: Counts = field(default_factory=dict)
    """The images attacked in this call, per norm."""
    masked_sum: Tensor | None = None
    """A second scalar to minimise: a sum over a subset of the images, to be divided by the size of that subset in the
    whole batch."""
    masked_count: int = 0
    """Images of the shard in that subset."""
    again: "Callable[[], BatchLoss] | None" = None
    """Computes the loss of the same attacked images once more, at the weights that the model then has."""

    @classmethod
    def of(cls, compute: "Callable[[], BatchLoss]") -> "BatchLoss":
        """Compute a loss that can be computed again, for a perturbation of the weights."""
        return replace(compute(), again=compute)

    def total(self) -> Tensor:
        """Return the sum of both terms for a shard that is the whole batch."""
        return self.loss if self.masked_sum is None else self.loss + self.masked_sum / (self.masked_count or 1)


class TrainingMethod(Protocol):
    """Turns a batch of images into a loss."""

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Compute the loss of a shard.

        model: maps images to logits; it is in train mode, before and after. batch: the images (shard, channels, height,
        width) and labels (shard,). shard: their position in the whole batch. counts: of all batches before this one; a
        norm that is missing has not been attacked yet.
        """


def whole(batch: Batch) -> Shard:
    """Return the shard that is all of a batch."""
    return Shard(0, len(batch.labels))
