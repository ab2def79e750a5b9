"""A sandbox: limits that a process puts on itself before it opens an untrusted file.

The kernel enforces them, and they cannot be lifted: exceeding one ends this process and nothing else. Access to the
network is removed by a filter of system calls (seccomp, Linux 4.14 or later), which needs no root and works in a
container. `core.confinement` takes the files away.
"""

import ctypes
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from core.schema.errors import OverLimit


@dataclass(frozen=True)
class Limits:
    """The resources that an inspection may use."""

    seconds: float = 900
    """Limit on wall-clock time, and on processor time."""
    memory_bytes: int = 4 * 2**30
    """Limit on memory beyond what the process has when the limit is set."""
    written_bytes: int = 4 * 2**30
    """Limit on the size of each file that it writes."""


@dataclass(frozen=True)
class _SystemCalls:
    """The numbers of system calls on one processor architecture."""

    audit: int
    """The kernel's identifier of the architecture (AUDIT_ARCH_*)."""
    seccomp: int
    """The call that sets a filter."""
    socket: int
    """The call that opens a socket."""
    forbidden: tuple[int, ...]
    """Numbers of the calls that are always blocked: ptrace, process_vm_readv, process_vm_writev and io_uring_setup.
    io_uring_setup is blocked because it can open sockets too."""
    permissions: tuple[int, ...]
    """Numbers of the calls that change a file's permissions, owner or extended attributes, which hold access control
    lists: chmod, chown, setxattr and removexattr, each in all its forms."""
    highest: int
    """The highest valid number; larger ones are aliases of the same calls."""


_ARCHITECTURES = {
    "x86_64": _SystemCalls(
        0xC000003E,
        317,
        41,
        (101, 310, 311, 425),
        (90, 91, 268, 452, 92, 93, 94, 260, 188, 189, 190, 463, 197, 198, 199, 466, 469),
        0x3FFFFFFF,
    ),
    "aarch64": _SystemCalls(
        0xC00000B7,
        277,
        198,
        (117, 270, 271, 425),
        (52, 53, 452, 54, 55, 5, 6, 7, 463, 14, 15, 16, 466, 469),
        0xFFFFFFFF,
    ),
}


class _Instruction(ctypes.Structure):
    """An instruction of a filter (struct sock_filter)."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """A filter: the number of its instructions and their address (struct sock_fprog)."""

    _fields_ = (("count", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


_LOAD, _AND, _IF_EQUAL, _IF_GREATER, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
"""Operations of the filter language."""
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
"""What a filter may return. _REFUSE makes the call fail with EPERM."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in the data that a filter sees (struct seccomp_data); of an argument, its lower half."""
_TYPE_OF_SOCKET = 0xF
"""The bits of a socket's type; others are flags."""
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1


def deny_network(*, but_for: Sequence[int] = (), streams_only: bool = False, keep_permissions: bool = False) -> str:
    """Stop this process, with all its threads and child processes, from opening sockets or reading other processes.

    but_for: address families, such as AF_UNIX, of which sockets may still be opened. streams_only: of the internet's
    families, only TCP. keep_permissions: whether changes of permissions, owners and extended attributes of files are
    refused, too.

    Returns the reason why that is not possible here; empty where it is done.
    """
    if complaint := find_no_filter():
        return complaint
    calls = _ARCHITECTURES[platform.machine()]
    forbidden = (*calls.forbidden, *(calls.permissions if keep_permissions else ()))
    instructions = _filter(calls, forbidden, but_for, streams_only=streams_only)
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    kernel = ctypes.CDLL(None, use_errno=True)
    # Without this only root may set a filter.
    kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if kernel.syscall(calls.seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0:
        return f"the kernel refuses a filter of system calls: {os.strerror(ctypes.get_errno())}"
    return ""


def find_no_filter() -> str:
    """Return the reason why no filter of system calls is known here; empty where one is."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return f"no filter of system calls is known for {sys.platform} on {platform.machine()}"
    return ""


def _filter(
    calls: _SystemCalls, forbidden: Sequence[int], families: Sequence[int], *, streams_only: bool
) -> list[_Instruction]:
    """Refuse the forbidden calls and sockets, and end a process that uses the numbers of another architecture."""
    internet = {socket.AF_INET, socket.AF_INET6} if streams_only else set[int]()
    lines: list[tuple[int, int, str, str]] = [
        # Each with its operand, and where it goes on if true and if not; empty: at the next line.
        (_LOAD, _ARCHITECTURE, "", ""),
        (_IF_EQUAL, calls.audit, "", "kill"),
        (_LOAD, _NUMBER, "", ""),
        (_IF_GREATER, calls.highest, "refuse", ""),
        *((_IF_EQUAL, number, "refuse", "") for number in forbidden),
        (_IF_EQUAL, calls.socket, "", "allow"),
        (_LOAD, _FIRST_ARGUMENT, "", ""),
        *((_IF_EQUAL, family, "type" if family in internet else "allow", "") for family in families),
        (_RETURN, _REFUSE, "", ""),
        (_LOAD, _SECOND_ARGUMENT, "", ""),
        (_AND, _TYPE_OF_SOCKET, "", ""),
        (_IF_EQUAL, socket.SOCK_STREAM, "allow", "refuse"),
        (_RETURN, _KILL, "", ""),
        (_RETURN, _ALLOW, "", ""),
        (_RETURN, _REFUSE, "", ""),
    ]
    end = len(lines)
    places = {"type": end - 6, "kill": end - 3, "allow": end - 2, "refuse": end - 1}
    return [
        _Instruction(code, *(places[label] - number - 1 if label else 0 for label in (yes, no)), k)
        for number, (code, k, yes, no) in enumerate(lines)
    ]


@contextmanager
def sandboxed(limits: Limits) -> Iterator[None]:
    """Run a block within the limits. Raises OverLimit.

    Only the wall clock stops at the end of the block; the other limits hold until the process ends. Code that Python
    cannot interrupt with an exception, such as a decoder that never returns, is ended by the kernel with a signal.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, limits.written_bytes)
    # Later than the wall clock, whose exception can be reported to the user.
    _lower(resource.RLIMIT_CPU, ceil(_cpu_seconds() + limits.seconds) + 10)
    if sys.platform == "linux":
        _lower(resource.RLIMIT_AS, _mapped_bytes() + limits.memory_bytes)
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        # torch has no exception class of its own for it, and a library may pass on the kernel's error.
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        raise OverLimit(
            f"reading the file takes more than {limits.memory_bytes / 2**30:.3g} GiB of memory",
            hint="use a smaller file, or ask the operator to raise the memory limit",
            field="file",
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    raise OverLimit(
        "reading the file takes longer than the limit",
        hint="use a smaller file, or ask the operator to raise the time limit",
        field="file",
    )


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (limit, limit))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _mapped_bytes() -> int:
    """Address space in use: torch's libraries map gigabytes, which the limit does not count."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
