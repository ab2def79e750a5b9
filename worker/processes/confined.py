"""The command lines of confined child processes, which `core.confinement` keeps from secrets and servers."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

_CONFINEMENT = "core.confinement"


def confined(
    *command: str, read: Iterable[Path] = (), write: Path, sockets: Literal["none", "unix"] = "none"
) -> list[str]:
    """Return the command line that runs `python -m ...` with the files of `read` and the folder `write` alone.

    sockets: whether it may open Unix sockets, which image loaders and CUDA need.
    """
    return [*_python(_CONFINEMENT), *_paths(read, write), "--sockets", sockets, *_python(*command)]


def confined_processes(*command: str, count: int, read: Sequence[Path] = (), write: Path) -> list[str]:
    """Return the same for several processes of one run, which torchrun starts in a network of their own.

    torchrun is confined too, but sees all of /proc: the numbers of its processes are known only to themselves, so each
    of them takes the rest of /proc from itself.
    """
    paths = _paths(read, write)
    launcher = [*_python(_CONFINEMENT), *paths, "--sockets", "loopback", "--launcher"]
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count)]
    return [*launcher, *_python(*torchrun, "-m"), _CONFINEMENT, *paths, "--narrow", *_python(*command)]


def _paths(read: Iterable[Path], write: Path) -> list[str]:
    return [*(part for path in read for part in ("--read", str(path))), "--write", str(write)]


def _python(*command: str) -> list[str]:
    return [sys.executable, "-m", *command]
