"""Gradient accumulation: the gradients of the micro-batches of a batch add up to the gradient of the batch."""

import torch
from torch import Tensor, nn

from core.training.distributed import ProcessGroup
from core.training.methods.contract import BatchLoss


class GradientAccumulator:
    """Adds up the gradients of one process's micro-batches, then those of all processes."""

    def __init__(self, model: nn.Module, group: ProcessGroup, *, batch_size: int, micro_batches: int) -> None:
        """Start without gradients.

        batch_size: images of the whole batch. micro_batches: the number of calls of `add`, the same in every process.
        """
        model.zero_grad()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._group = group
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._masked = _MaskedMean(self._parameters) if micro_batches > 1 else None
        self._loss = 0.0

    def add(self, found: BatchLoss, images: int) -> None:
        """Add the gradient of a micro-batch of this many images."""
        loss = found.loss * (images / self._batch_size)
        if found.masked_sum is not None:
            if self._masked is None:
                loss = loss + found.masked_sum / max(self._group.sum_count(found.masked_count), 1)
            else:
                self._masked.add(found.masked_sum, found.masked_count)
        loss.backward()
        self._loss += loss.item()

    def finish(self) -> float:
        """Sum the gradients over all processes, and return this process's part of the mean loss of the batch."""
        if self._masked is not None:
            self._loss += self._masked.finish(self._group)
        self._group.all_reduce_many([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        return self._loss


class _MaskedMean:
    """The gradient of a sum over a subset of the batch, to be divided by the size of that subset.

    The size is known only after the last micro-batch, so this gradient is kept apart until then.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._gradients: list[Tensor | None] = [None] * len(parameters)
        self._sum = 0.0
        self._count = 0

    def add(self, masked_sum: Tensor, masked_count: int) -> None:
        """Add a micro-batch; its graph is kept for the gradient of the other loss."""
        gradients = torch.autograd.grad(masked_sum, self._parameters, retain_graph=True, allow_unused=True)
        pairs = zip(self._gradients, gradients, strict=True)
        self._gradients = [new if old is None else old if new is None else old + new for old, new in pairs]
        self._sum += masked_sum.item()
        self._count += masked_count

    def finish(self, group: ProcessGroup) -> float:
        """Divide by the size of the subset, add the result to the parameters' gradients, and return the loss."""
        count = max(group.sum_count(self._count), 1)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None:
                assert parameter.grad is not None
                parameter.grad.add_(gradient, alpha=1 / count)
        return self._sum / count
