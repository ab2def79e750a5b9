"""How much memory a run has taken."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Measure the most bytes that this process has had so far: of the GPU's memory, or where it computes on none, of
    the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In units of a kilobyte, but on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
