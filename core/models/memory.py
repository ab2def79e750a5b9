"""Measure the memory of a run, and fit a computation into it."""

import resource
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from core.schema.errors import OutOfMemory

_Result = TypeVar("_Result")

# Messages of a plain RuntimeError: on a CPU, from the driver, and from libraries that allocate for themselves.
_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def peak_memory(device: torch.device) -> int:
    """Measure the peak memory of this process so far, in bytes: of the GPU, or on a CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In kilobytes, except on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Check whether an error of torch means that memory ran out: not all such errors have a class of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _MESSAGES)


class MemoryRanOut(Exception):
    """The memory of a device does not suffice for a computation."""


def attempt(compute: Callable[[], _Result], device: torch.device) -> _Result:
    """Call `compute`. Raises MemoryRanOut when memory runs out, once the memory of the failed call is free again."""
    try:
        return compute()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Outside the except block, which holds the tensors of the failed call.
    release(device)
    raise MemoryRanOut


class ChunkSizer:
    """The number of images that go through a model together, halved whenever memory runs out."""

    def __init__(self, chunk_size: int, device: torch.device) -> None:
        self.chunk_size = chunk_size
        self._device = device

    def fit(self, compute: Callable[[int], _Result]) -> _Result:
        """Call `compute` with the chunk size, and again with half of it whenever memory runs out; the result must not
        depend on it.

        Raises OutOfMemory where not even one fits.
        """
        while True:
            try:
                return compute(self.chunk_size)
            except RuntimeError as error:
                self.check(error)
            # After the except block, which held on to the memory of the failed attempt.
            self.halve()

    def check(self, error: RuntimeError) -> None:
        """Raise the error unless it means that memory ran out; raise OutOfMemory where not even one image fits."""
        if not is_out_of_memory(error):
            raise error
        if self.chunk_size == 1:
            raise OutOfMemory(
                f"one image at a time does not fit the memory of {self._device}",
                hint="use a device with more memory, or a smaller network",
            ) from error

    def halve(self) -> None:
        """Halve the chunk size, and release the memory of the failed attempt."""
        self.chunk_size //= 2
        release(self._device)


def release(device: torch.device) -> None:
    """Return the memory that torch caches, so that the next attempt finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
