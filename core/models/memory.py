"""How much memory a run has taken, and how much of a computation fits it."""

import resource
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from core.schema.errors import OutOfMemory

_Found = TypeVar("_Found")

# What torch raises as a plain RuntimeError: on a CPU, by the driver, and by libraries that allocate for themselves.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def peak_memory(device: torch.device) -> int:
    """Measure the most bytes that this process has had so far: of the GPU's memory, or where it computes on none, of
    the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In units of a kilobyte, but on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error of torch means that memory is short: not all of them have a class of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WORDS)


class Room:
    """How many images of a batch go through a model together: half as many each time that they are too many."""

    def __init__(self, chunk_size: int, device: torch.device) -> None:
        self.chunk_size = chunk_size
        self._device = device

    def fit(self, compute: Callable[[int], _Found]) -> _Found:
        """Compute with as many images at once as there is memory for; it must give the same for any number.

        Raises OutOfMemory where not even one fits.
        """
        while True:
            try:
                return compute(self.chunk_size)
            except RuntimeError as error:
                self.check(error)
            # Only here is what the failed attempt held free again.
            self.halve()

    def check(self, error: RuntimeError) -> None:
        """Raise the error unless it means that memory is short; OutOfMemory where not even one image fits."""
        if not is_out_of_memory(error):
            raise error
        if self.chunk_size == 1:
            raise OutOfMemory(
                f"one image at a time does not fit the memory of {self._device}",
                hint="use a device with more memory, or a smaller network",
            ) from error

    def halve(self) -> None:
        """Take half as many images from now on, and let go of what the attempt held."""
        self.chunk_size //= 2
        release(self._device)


def release(device: torch.device) -> None:
    """Give back what torch keeps for the next time, so that the next attempt finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
