"""Limits that a process puts on itself before it opens a file of a stranger. No torch.

They are the kernel's, and cannot be taken back: what goes past them ends this process and nothing else.
"""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from core.errors import OverLimit


@dataclass(frozen=True)
class Limits:
    """What an examination may use at most."""

    seconds: float = 900
    """Time, on the clock and of the processor."""
    memory_bytes: int = 4 * 2**30
    """Memory beyond what the process has when it begins."""
    written_bytes: int = 4 * 2**30
    """Bytes of any one file that it writes."""


@contextmanager
def confined(limits: Limits) -> Iterator[None]:
    """Run a block within the limits, the process to its end. Raises OverLimit.

    What Python cannot end by an exception, such as a decoder that never returns, the kernel ends by a signal.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, limits.written_bytes)
    # The clock comes first where it can: its exception can be told to the user.
    _lower(resource.RLIMIT_CPU, ceil(_cpu_seconds() + limits.seconds) + 10)
    if sys.platform == "linux":
        _lower(resource.RLIMIT_AS, _mapped_bytes() + limits.memory_bytes)
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        # torch has no class of its own for it, and a library may pass on the kernel's.
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        raise OverLimit(
            f"to read it takes more than {limits.memory_bytes / 2**30:.3g} GiB of memory",
            hint="use a smaller file, or have the operator allow more memory",
            field="file",
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    raise OverLimit(
        "to read it takes longer than it may",
        hint="use a smaller file, or have the operator allow more time",
        field="file",
    )


def _lower(what: int, to: int) -> None:
    _, hard = resource.getrlimit(what)
    most = to if hard == resource.RLIM_INFINITY else min(to, hard)
    resource.setrlimit(what, (most, most))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _mapped_bytes() -> int:
    """Address space in use: that of torch's libraries is gigabytes, and no part of the limit."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
