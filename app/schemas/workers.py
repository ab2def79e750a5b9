"""Workers: what each has, whether it lives, and what it does."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Answer, Listed


class Device(Answer):
    """A GPU of a worker."""

    name: str
    """Its model."""
    memory: int | None
    """Bytes of its memory; null where that is not known."""


class Work(Answer):
    """A job or a task that a worker has."""

    kind: str
    """job, or the kind of a task, such as inspect_dataset."""
    id: str
    """Id of the job or the task."""
    attempt: int
    """Number of the attempt."""
    since: datetime | None
    """When the attempt began; null for a task."""


class Worker(Listed):
    """A worker process."""

    object: Literal["worker"]
    """Type of the object."""
    name: str
    """Its machine and process, as in attempts."""
    status: Literal["alive", "stopping", "lost"]
    """alive: it claims work. stopping: it ends what it has. lost: it has vanished; the row is kept for a day."""
    resource_class: str
    """gpu or cpu: its class, as TEMPER_RESOURCE_CLASS has it."""
    slots: int
    """Jobs that it runs at the same time."""
    devices: list[Device]
    """The GPUs that it has for jobs, in the order in which a job gets them."""
    capabilities: list[str]
    """What it can do beyond what every worker can."""
    versions: dict[str, str]
    """Versions of what results depend on."""
    started_at: datetime
    """When it started."""
    heartbeat_at: datetime
    """When it was last heard of."""
    work: list[Work]
    """What it works on now."""
