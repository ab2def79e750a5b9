"""Batch sizes: the smallest batch that a network can train on, and micro-batches that fit the memory."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import nn
from torch.func import functional_call

from core.data.training_set import TrainingSet
from core.models.memory import MemoryRanOut, attempt
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import Warned
from core.schema.spec import TrainingSpec
from core.training.distributed import ProcessGroup

_Result = TypeVar("_Result")


class MicroBatching:
    """The number of micro-batches per batch: that of the spec, or for auto one that doubles when memory runs out."""

    def __init__(self, spec: TrainingSpec, model: nn.Module, train: TrainingSet, group: ProcessGroup) -> None:
        """Raises BadInput for batches that are too small for the processes or for batch norm."""
        self._model, self._shape, self._group = model, train.shape, group
        self._batch_size = spec.batch_size
        self._auto = spec.accumulate == "auto"
        self.count = 1 if spec.accumulate == "auto" else spec.accumulate
        """Micro-batches per batch."""
        self._reported = self.count
        self._check(train)

    def fit(self, compute: Callable[[int], _Result], batch_size: int) -> _Result:
        """Call `compute` with the number of micro-batches of a batch, twice as many each time that memory runs out.

        The number is the same in every process, and each micro-batch is large enough to train on. Raises MemoryRanOut
        when the number is fixed or at its limit.
        """
        while True:
            count = 1 if self.count == 1 else min(self.count, self._most(batch_size))
            try:
                return attempt(partial(compute, count), self._group.device)
            except MemoryRanOut:
                # The other processes would not know of it, and still compute the old number of micro-batches.
                may_increase = self._auto and self._group.world_size == 1
                if not may_increase or count == self._most(batch_size):
                    raise
                self.count = min(2 * count, self._most(batch_size))

    def report(self, batch_size: int) -> Iterator[Warned]:
        """Warn where the number of micro-batches has increased since the last call."""
        if self.count > self._reported:
            yield Warned(
                code="accumulating",
                message=f"a batch of {batch_size} images does not fit the memory of {self._group.device}: from now on "
                f"each is computed in {self.count} micro-batches, with batch norm statistics of their own",
            )
        self._reported = self.count

    def restore(self, count: int) -> None:
        """Continue with the number of micro-batches of an earlier part of the run."""
        self.count = self._reported = count

    def out_of_memory(self, take_step: Callable[[int], None], batch_size: int) -> OutOfMemory:
        """Build the error for a batch that does not fit the memory, with a batch size that does.

        take_step: takes a training step on this many images. Several processes do not search for a size.
        """
        if self._group.world_size > 1:
            hint = (
                f"set batch_size to less, such as {max(batch_size // 2, 1)}, or accumulate to more; several processes "
                "cannot search for a size that fits"
            )
        elif fits := self._find_fitting_size(take_step, batch_size):
            hint = f"set batch_size to {fits}, which was found to fit"
            hint += "" if self._auto else ", or set accumulate to auto"
        else:
            hint = "not even the smallest batch fits: use a device with more memory, or a smaller network"
        return OutOfMemory(
            f"a batch of {batch_size} images does not fit the memory of {self._group.device}",
            hint=hint,
            field="batch_size",
        )

    def _find_fitting_size(self, take_step: Callable[[int], None], size: int) -> int:
        """Halve a number of images that does not fit until one fits; return it, or 0 when none fits."""
        while (size := size // 2) >= self._fewest:
            with suppress(MemoryRanOut):
                attempt(partial(take_step, size), self._group.device)
                return size
        return 0

    def _most(self, batch_size: int) -> int:
        """Return the largest number of micro-batches of a batch."""
        return max(batch_size // self._group.world_size // self._fewest, 1)

    @cached_property
    def _fewest(self) -> int:
        """The number of images that the network needs at once; batch norm over several processes has enough."""
        return 1 if self._group.world_size > 1 else fewest_images(self._model, self._shape, self._group.device)

    def _check(self, train: TrainingSet) -> None:
        """Refuse a run whose smallest batch is too small."""
        smallest = train.smallest_batch(self._batch_size)
        if smallest < self._group.world_size:
            raise BadInput(
                f"the smallest batch of an epoch has {smallest} images, too few for {self._group.world_size} processes",
                hint="choose another batch_size",
                field="batch_size",
            )
        if smallest == 1 and self._fewest > 1:
            alone = self._batch_size == 1
            raise BadInput(
                "this network cannot train on a batch of one image: batch norm over maps of one pixel needs two",
                hint="set batch_size to 2 or more" if alone else "train on 2 images or more",
                field="batch_size" if alone else "train_examples",
            )


def fewest_images(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """Find how many images the network needs at once in train mode: 1, or 2 for batch norm over maps of one pixel.

    shape: channels, height and width of an image. The model and the global random state stay unchanged.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        # Batch norm updates its running statistics, here those of copies; layers such as dropout draw.
        copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
        image = torch.zeros(1, *shape, device=device)
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            functional_call(model, copies, image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return 2
    finally:
        for module, training in modes:
            module.training = training
    return 1
