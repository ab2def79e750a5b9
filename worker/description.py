"""What this worker is and has for jobs: its name, GPUs, capabilities and versions."""

import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

from app.assets.architectures import TIMM_NETWORKS, capability_of
from app.jobs.workers import Description
from app.platform.ids import new_id
from app.platform.settings import Settings
from core.schema.catalog import PACKAGED, PACKAGES, find_architecture
from worker.host import read_gpus

log = logging.getLogger(__name__)

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
        capabilities=frozenset(_capabilities()),
        versions={"python": platform.python_version()} | _versions(),
    )


def _capabilities() -> Iterator[str]:
    if find_spec("timm"):
        yield TIMM_NETWORKS
    for point in entry_points(group=PACKAGES):
        name = f"{PACKAGED}{point.name}"
        capability = capability_of(name) if find_architecture(name) else None
        if capability:
            yield capability
        else:
            log.warning("an installed package offers a network %r, which is no name that a spec may have", point.name)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
