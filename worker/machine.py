"""What the machine of a worker has, as far as it can be told without torch."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where the kernel shows its control groups."""
_PR_SET_DUMPABLE = 4


def keep_to_itself() -> None:
    """Keep other processes of the same user from reading this one's memory and environment, on Linux.

    A training process is of the same user, and handles what strangers have sent; the credentials are in here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def count_gpus() -> int:
    """Count the GPUs of Nvidia's that a training process will see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def count_oom_kills() -> int | None:
    """Count the processes of this one's control group that the kernel has killed for want of memory, of the group or of
    the machine; None where it does not tell."""
    for file in _counters():
        with suppress(OSError):
            counts = dict(line.split(" ", 1) for line in file.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None


def _counters() -> Iterator[Path]:
    """Name the files that may have the count, in both versions of control groups; in a container its own group may be
    the topmost that is shown."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if not controllers:
            yield from (CONTROL_GROUPS / place / "memory.events" for place in (path.lstrip("/"), ""))
        elif "memory" in controllers.split(","):
            yield from (CONTROL_GROUPS / "memory" / place / "memory.oom_control" for place in (path.lstrip("/"), ""))
