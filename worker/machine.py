"""What the machine of a worker has, as far as it can be told without torch."""

import ctypes
import os
import sys
from pathlib import Path

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
