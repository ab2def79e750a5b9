"""The images that a run trains on, with or without extra data, and the order of an epoch.

An epoch is a list of indices, one tensor per batch, drawn before it begins: a run that was interrupted after k batches
draws the same list and continues with `order[k:]`.

With extra data, a fixed share of each batch comes from the second set, and an epoch has every image of the first set
once (Carmon et al. 2019, arXiv 1905.13736; Croce & Hein 2022 for their models with extra data): with half of each
batch, ceil(2 N / batch size) batches.
"""

from collections.abc import Iterable, Iterator
from copy import copy
from typing import Self

import torch
from torch import Generator, Tensor

from core.data.labelled_images import LabelledImages
from core.data.split import WHOLE, Batch, ProcessShare
from core.schema.catalog import Augmentation


class TrainingSet:
    """The images that a run trains on; implements `core.data.labelled_images.BatchSource`."""

    def __init__(self, main: LabelledImages, extra: LabelledImages | None = None, share: float = 0.5) -> None:
        """Train on each image of `main` once per epoch; `share` of each batch comes from `extra`, if there is one."""
        self._main = len(main)
        self._extra = 0 if extra is None else len(extra)
        self._share = share
        self._part = main if extra is None else main.concat(extra)

    def __len__(self) -> int:
        """Return the number of main images."""
        return self._main

    def to(self, device: torch.device) -> Self:
        """Return the same images; their batches lie on the device."""
        moved = copy(self)
        moved._part = self._part.to(device)
        return moved

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self._part.shape

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of an epoch."""
        return len(self._counts(batch_size))

    def smallest_batch(self, batch_size: int) -> int:
        """Return the number of images in the smallest batch of an epoch."""
        return min(main + extra for main, extra in self._counts(batch_size))

    def draw_order(self, batch_size: int, generator: Generator) -> list[Tensor]:
        """Draw the order of an epoch: the indices (n,) of each batch, those of extra images after all main ones.

        Extra images are drawn without replacement until all have been drawn. The last batch may be smaller, but a
        single remaining image joins the batch before it: batch norm cannot train on one image.
        """
        from_main, from_extra = (list(counts) for counts in zip(*self._counts(batch_size), strict=True))
        main = torch.randperm(self._main, generator=generator).split(from_main)
        if not self._extra:
            return list(main)
        rounds = -(-sum(from_extra) // self._extra)
        drawn = torch.cat([torch.randperm(self._extra, generator=generator) for _ in range(rounds)])
        extra = (drawn[: sum(from_extra)] + self._main).split(from_extra)
        # Shuffled within the batch, so that every process gets images of both sets.
        return [_shuffled(torch.cat(parts), generator) for parts in zip(main, extra, strict=True)]

    def batches(
        self, order: Iterable[Tensor], augmentation: Augmentation, generator: Generator, share: ProcessShare = WHOLE
    ) -> Iterator[Batch]:
        """Yield one augmented batch for each index in `order`; see `BatchSource.batches`."""
        return self._part.batches(order, augmentation, generator, share)

    def _counts(self, batch_size: int) -> list[tuple[int, int]]:
        """Return the numbers of main and extra images of each batch of an epoch."""
        full = self._main_images(batch_size)
        whole, left = divmod(self._main, full)
        mains = [full] * whole + [left] * (left > 0)

        def with_extra(main: int) -> tuple[int, int]:
            return main, round(main * (batch_size - full) / full)

        if whole and left and sum(with_extra(left)) == 1:
            mains[-2:] = [full + left]
        return [with_extra(main) for main in mains]

    def _main_images(self, batch_size: int) -> int:
        """Return the number of main images in a full batch; at least one image comes from each set."""
        if not self._extra:
            return batch_size
        return batch_size - min(max(round(batch_size * self._share), 1), batch_size - 1)


def _shuffled(index: Tensor, generator: Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=generator)]
