"""The rule that decides whether a data set is read into memory or streamed from its files."""

import os
from contextlib import suppress
from pathlib import Path

COPIES = 3
"""Copies of all pixels that reading a set into memory takes at its peak: the images, the stack of them, and the stack
in its final order."""
SHARE = 0.5
"""The share of the available memory that a data set may take while it is read."""

_CGROUP = Path("/sys/fs/cgroup")


def fits_memory(decoded_bytes: int) -> bool:
    """Whether a set of this size is read into memory. decoded_bytes: of all its pixels, a byte for each channel."""
    return COPIES * decoded_bytes <= SHARE * available_memory()


def available_memory() -> int:
    """Return the bytes of memory that this process can still take, of the machine and of its container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        # A container's own limit; "max" where there is none.
        limit = int((_CGROUP / "memory.max").read_text("ascii"))
        found.append(limit - int((_CGROUP / "memory.current").read_text("ascii")))
    return max(min(found), 0)
