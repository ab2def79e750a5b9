"""What the machine of a worker has, as far as it can be told without torch."""

import os
from pathlib import Path


def count_gpus() -> int:
    """Count the GPUs of Nvidia's that a training process will see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
