"""Landlock (Linux 5.13 or later): a process gives up access to files, TCP ports and other processes, for ever.

The kernel enforces it for this process and all that it starts. It needs no root. Each version of the kernel's
interface knows more kinds of access; what a kernel does not know is not restricted. Source: the kernel's
Documentation/userspace-api/landlock.rst.
"""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from enum import IntFlag
from functools import cache, reduce
from operator import or_
from pathlib import Path


class Access(IntFlag):
    """Kinds of access to files; those that a rule does not name are refused below its path."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15
    RESOLVE_UNIX = 1 << 16


READ = Access.READ_FILE | Access.READ_DIR
RUN = READ | Access.EXECUTE
USE_DEVICE = READ | Access.WRITE_FILE | Access.IOCTL_DEV
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SOCK
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
    | Access.TRUNCATE
)

TRUNCATION, TCP, SIGNALS = 3, 4, 6
"""Versions of the interface from which on truncation, TCP ports, and signals and abstract Unix sockets are restricted
(Linux 6.2, 6.7 and 6.12)."""
_NEW = {2: Access.REFER, TRUNCATION: Access.TRUNCATE, 5: Access.IOCTL_DEV, 9: Access.RESOLVE_UNIX}
"""Kinds of access that a version adds to those of version 1."""
_OF_A_FILE = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV | Access.RESOLVE_UNIX
)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on all architectures."""
_ASK_VERSION = 1
_BELOW_PATH, _TCP_PORT = 1, 2
_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_NO_NEW_PRIVILEGES = 38


class _Ruleset(ctypes.Structure):
    """What is refused unless a rule allows it (struct landlock_ruleset_attr)."""

    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _PortRule(ctypes.Structure):
    """struct landlock_net_port_attr."""

    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def version() -> int:
    """Return the version of the kernel's interface; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    found: int = _kernel().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    return max(found, 0)


def restrict(files: Mapping[Path, Access], *, ports: Iterable[int] | None = (), others: bool = True) -> None:
    """Refuse this process, and all that it starts from now on, all files, TCP ports and other processes but these.

    Only the calling thread is restricted: call it before there are others.

    files: what is allowed for a file, or for a folder and all below it; a path that does not exist is skipped. A
    symbolic link stands for what it leads to. ports: TCP ports that may still be bound and connected to; None for all.
    others: whether signals to processes outside, and abstract Unix sockets of theirs, are refused.

    Does nothing where the kernel has no Landlock. Raises OSError.
    """
    interface = version()
    if not interface:
        return
    handled = reduce(or_, (access for since, access in _NEW.items() if since <= interface), Access((1 << 13) - 1))
    attributes = _Ruleset(
        handled,
        _BIND_AND_CONNECT if ports is not None and interface >= TCP else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if others and interface >= SIGNALS else 0,
    )
    # Older kernels know a shorter structure; a longer one must have zeros where they know nothing.
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), 0)
    for path, access in files.items():
        _allow(ruleset, path, access & handled)
    if attributes.tcp:
        for port in ports or ():
            rule = _PortRule(_BIND_AND_CONNECT, port)
            _call(_ADD_RULE, ruleset, _TCP_PORT, ctypes.byref(rule), 0)
    _kernel().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: Path, access: Access) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(file).st_mode):
        access &= _OF_A_FILE
    rule = _PathRule(access, file)
    _call(_ADD_RULE, ruleset, _BELOW_PATH, ctypes.byref(rule), 0)
    if path.is_relative_to("/proc"):
        # A rule is about an inode. /proc makes a new one once it has dropped the old one, which an open file prevents.
        os.set_inheritable(file, True)
    else:
        os.close(file)


def _call(number: int, *arguments: object) -> int:
    result: int = _kernel().syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
    return result


@cache
def _kernel() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
