"""The workplace of a worker: its settings, database, object store and registry, shared by all its jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event

from app.assets.registry import Registry
from app.jobs.leases import Claim
from app.jobs.workers import Description
from app.platform.database import Database
from app.platform.settings import Settings
from app.storage import ObjectStore
from worker.description import describe
from worker.host import HeartbeatFile
from worker.processes.training_process import core_command


@dataclass(frozen=True)
class Workplace:
    """What all jobs of a worker share."""

    settings: Settings
    database: Database
    store: ObjectStore
    registry: Registry
    command: Callable[[Claim, Path, Registry], Sequence[str]] = core_command
    """Returns the command of the training process."""
    stopping: Event = field(default_factory=Event)
    """Set when this worker is to hand its jobs back and end."""

    @cached_property
    def description(self) -> Description:
        """What this worker is and has, as it was when it was first asked for."""
        return describe(self.settings)

    @cached_property
    def heartbeat(self) -> HeartbeatFile:
        """The file that shows that this worker is alive."""
        return HeartbeatFile(self.settings.heartbeat_file)
