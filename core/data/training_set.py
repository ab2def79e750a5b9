"""What a run trains on, and the order of an epoch.

An epoch is a list of indices, one tensor for each batch, drawn before it begins: a run that was cut off after k batches
draws the same list and goes on with `order[k:]`.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from core.catalog import Augmentation
from core.data.split import Batch, Split


class TrainingSet:
    """The images of a run's training batches."""

    def __init__(self, main: Split) -> None:
        """Train on the images of `main`, each once in an epoch."""
        self._part = main
        self._main = len(main)

    def __len__(self) -> int:
        return self._main

    def to(self, device: torch.device) -> "TrainingSet":
        """Let batches come on a device."""
        return TrainingSet(self._part.to(device))

    def steps(self, batch_size: int) -> int:
        """Count the batches of an epoch."""
        return -(-self._main // batch_size)

    def draw_order(self, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Draw the order of an epoch: for each batch the indices (n,) of its images."""
        return list(torch.randperm(self._main, generator=generator).split(batch_size))

    def batches(
        self,
        order: Iterable[Tensor],
        augmentation: Augmentation,
        generator: torch.Generator,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[Batch]:
        """Hand out a batch for each index in `order`, augmented, on the device; see `Split.batches`."""
        return self._part.batches(order, augmentation, generator, rank=rank, ranks=ranks)
