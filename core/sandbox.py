"""Limits that a process puts on itself before it opens a file of a stranger. No torch.

They are the kernel's, and cannot be taken back: what goes past them ends this process and nothing else. The network is
taken away by a filter of system calls (seccomp, Linux 4.14 or later), which needs no root and works in a container.
"""

import ctypes
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from core.schema.errors import OverLimit


@dataclass(frozen=True)
class Limits:
    """What an inspection may use at most."""

    seconds: float = 900
    """Time, on the clock and of the processor."""
    memory_bytes: int = 4 * 2**30
    """Memory beyond what the process has when it begins."""
    written_bytes: int = 4 * 2**30
    """Bytes of any one file that it writes."""


@dataclass(frozen=True)
class _Machine:
    """The numbers that a kind of processor has for system calls."""

    audit: int
    seccomp: int
    forbidden: tuple[int, ...]
    """socket, ptrace, process_vm_readv, process_vm_writev, and io_uring_setup, by which one could get round them."""
    highest: int
    """Above it are other numbers for the same calls."""


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, (41, 101, 310, 311, 425), 0x3FFFFFFF),
    "aarch64": _Machine(0xC00000B7, 277, (198, 117, 270, 271, 425), 0xFFFFFFFF),
}


class _Step(ctypes.Structure):
    """An instruction of the kernel's filter language (struct sock_filter)."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """Where the instructions are, and how many (struct sock_fprog)."""

    _fields_ = (("count", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step)))


_LOAD, _IF_EQUAL, _IF_GREATER, _ANSWER = 0x20, 0x15, 0x25, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER, _PROCESSOR = 0, 4
"""Where in what the filter is shown these are."""
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1


def deny_network() -> str:
    """Let neither this process, with all its threads, nor any that it starts make a connection or look into another
    process. Give why that cannot be done here; empty where it is done."""
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return f"no filter of system calls is known for {sys.platform} on {platform.machine()}"
    steps = _filter(machine)
    program = _Program(len(steps), (_Step * len(steps))(*steps))
    kernel = ctypes.CDLL(None, use_errno=True)
    # Without this only root may set a filter.
    kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if kernel.syscall(machine.seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0:
        return f"the kernel takes no filter of system calls: {os.strerror(ctypes.get_errno())}"
    return ""


def _filter(machine: _Machine) -> list[_Step]:
    """Refuse what is forbidden, and end who calls by the numbers of another processor."""
    count = len(machine.forbidden)
    return [
        _Step(_LOAD, 0, 0, _PROCESSOR),
        _Step(_IF_EQUAL, 1, 0, machine.audit),
        _Step(_ANSWER, 0, 0, _KILL),
        _Step(_LOAD, 0, 0, _NUMBER),
        _Step(_IF_GREATER, count + 1, 0, machine.highest),
        *(_Step(_IF_EQUAL, count - place, 0, number) for place, number in enumerate(machine.forbidden)),
        _Step(_ANSWER, 0, 0, _ALLOW),
        _Step(_ANSWER, 0, 0, _REFUSE),
    ]


@contextmanager
def sandboxed(limits: Limits) -> Iterator[None]:
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
