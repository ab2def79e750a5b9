"""What this worker is and has for jobs: its name, GPUs, capabilities and versions."""

import os
import platform
import socket
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from app.jobs.requirements import TIMM_NETWORKS
from app.jobs.workers import Description
from app.platform.ids import new_id
from app.platform.settings import Settings
from worker.host import read_gpus

_VERSIONED = ("temper", "torch", "torchvision", "timm")


def describe(settings: Settings) -> Description:
    """Find out what this worker has for jobs."""
    # One of class cpu takes no job that asks for GPUs, whatever the machine has.
    gpus = [] if settings.resource_class == "cpu" else read_gpus()[: settings.gpus]
    return Description(
        id=new_id("wrk"),
        name=f"{socket.gethostname()}:{os.getpid()}",
        resource_class=settings.resource_class,
        slots=settings.concurrency,
        devices=tuple(gpus),
        capabilities=frozenset([TIMM_NETWORKS] if find_spec("timm") else []),
        versions={"python": platform.python_version()} | _versions(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
