"""The worker's machine and process: GPUs, memory kills, protected memory, and a heartbeat file for health checks.

`python -m worker.host` is the health check: it fails when no worker has touched the heartbeat file for half a minute.
"""

import ctypes
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from app.jobs.workers import Device
from app.platform.settings import Settings

log = logging.getLogger(__name__)

CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where the kernel shows its control groups."""
_NVIDIA, _UNIFIED_MEMORY = Path("/proc/driver/nvidia"), Path("/dev/nvidia-uvm")
_PR_SET_DUMPABLE = 4
_UNKNOWN = Device("NVIDIA GPU", None)
_ANSWER_SECONDS = 20
_STALE_SECONDS = 30
_BEAT_SECONDS = 1.0


def protect_memory() -> None:
    """Keep other processes of the same user from reading this one's memory and environment, on Linux.

    A training process runs as the same user and reads untrusted files; this process holds the credentials.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def make_gpu_devices() -> None:
    """Have the device files of NVIDIA's driver made where they are missing after a start of the machine.

    The first program that computes makes them, by a helper that runs as root, which a confined run must not start.
    """
    gpus = len(list(_NVIDIA.glob("gpus/*")))
    if gpus and not _UNIFIED_MEMORY.exists():
        with suppress(OSError):
            subprocess.run(["nvidia-modprobe", "-u", *(f"-c={number}" for number in range(gpus))], check=False)


def count_gpus() -> int:
    """Count the NVIDIA GPUs that a training process will see, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(_NVIDIA.glob("gpus/*")))


def read_gpus() -> list[Device]:
    """List the NVIDIA GPUs that a training process will see, in its order. What the driver's program does not tell of
    one stays unknown."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = count_gpus()
    known = _ask_driver() if count else []
    if visible is None:
        return [known[number][1] if number < len(known) else _UNKNOWN for number in range(count)]
    names = [name.strip() for name in visible.split(",")]
    return [_find(name, known) for name in names if name not in ("", "-1")]


def _ask_driver() -> list[tuple[str, Device]]:
    """Ask the driver's program for the UUID of each GPU, its name and its memory."""
    ask = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the memory of the GPUs is not known: nvidia-smi: %s", error)
        return []
    found = []
    for line in told.splitlines():
        uuid, name, memory = (part.strip() for part in line.split(","))
        # A GPU that shares the memory of the machine has none of its own to tell of.
        found.append((uuid, Device(name, int(memory) * 2**20 if memory.isdecimal() else None)))
    return found


def _find(name: str, known: Sequence[tuple[str, Device]]) -> Device:
    """Find a GPU by what CUDA_VISIBLE_DEVICES has: its number, or the begin of its UUID."""
    if name.isdecimal():
        return known[int(name)][1] if int(name) < len(known) else _UNKNOWN
    return next((device for uuid, device in known if uuid.startswith(name)), _UNKNOWN)


def count_oom_kills() -> int | None:
    """Count the processes of this control group that the kernel has killed because memory ran out, of the group or of
    the machine; None where the kernel does not report it."""
    for file in _counters():
        with suppress(OSError):
            counts = dict(line.split(" ", 1) for line in file.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None


def _counters() -> Iterator[Path]:
    """List the files that may have the count, for both versions of control groups; in a container, its own group may be
    the topmost one that is visible."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if not controllers:
            yield from (CONTROL_GROUPS / group / "memory.events" for group in (path.lstrip("/"), ""))
        elif "memory" in controllers.split(","):
            yield from (CONTROL_GROUPS / "memory" / group / "memory.oom_control" for group in (path.lstrip("/"), ""))


class HeartbeatFile:
    """A file that the worker touches while it looks for work or keeps a lease."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beaten_at = 0.0

    def beat(self) -> None:
        """Touch the file, at most once a second. A disk that refuses does not stop the worker."""
        if time.monotonic() - self._beaten_at > _BEAT_SECONDS:
            self._beaten_at = time.monotonic()
            with suppress(OSError):
                self._path.touch()


def check(heartbeat: Path) -> str:
    """Return what is wrong with the worker of this heartbeat file; an empty string when nothing is."""
    try:
        age = time.time() - heartbeat.stat().st_mtime
    except FileNotFoundError:
        return f"no worker has run here: {heartbeat} does not exist"
    return f"last heartbeat {age:.0f} s ago" if age > _STALE_SECONDS else ""


if __name__ == "__main__":
    sys.exit(check(Settings.from_environment().heartbeat_file) or None)
