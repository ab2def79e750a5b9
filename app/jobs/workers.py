"""The rows of workers: a worker registers, says again and again that it lives, and leaves. The caller commits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.jobs.requirements import Capacity
from app.platform.database import now, seconds_from_now
from app.platform.paging import Order, Part, Place, list_rows
from app.platform.settings import ResourceClass
from app.tables import AT_WORK, Attempt, Job, Task, Worker

KEPT_DAYS = 1
"""Days for which the row of a worker that has vanished is kept."""


@dataclass(frozen=True)
class Device:
    """A GPU of a worker."""

    name: str
    memory: int | None
    """Bytes; None where that is not known."""


@dataclass(frozen=True)
class Description:
    """What a worker says of itself when it starts."""

    id: str
    name: str
    """Its machine and process, as in the attempts that it makes."""
    resource_class: ResourceClass
    slots: int
    devices: tuple[Device, ...]
    capabilities: frozenset[str]
    versions: Mapping[str, str]

    @property
    def capacity(self) -> Capacity:
        """What it has for a job."""
        return Capacity(self.capabilities, tuple(device.memory for device in self.devices))


@dataclass(frozen=True)
class Held:
    """A job or a task that a worker holds."""

    kind: str
    """job, or the kind of the task."""
    id: str
    attempt: int
    since: datetime | None
    """When it was claimed; None for a task, whose row does not say it."""


def beat(session: Session, worker: Description, *, seconds: float, is_stopping: bool = False) -> None:
    """Say that a worker lives, and will for `seconds`. The first time, or where its row is gone, it is registered."""
    said: dict[str, Any] = {
        "heartbeat_at": now(),
        "alive_until": seconds_from_now(seconds),
        "is_stopping": is_stopping,
    }
    beaten = update(Worker).where(Worker.id == worker.id).values(said).returning(Worker.id)
    if session.scalars(beaten).all():
        return
    # An earlier process at the same place, which has been replaced.
    session.execute(delete(Worker).where(Worker.name == worker.name, Worker.alive_until < now()))
    session.add(
        Worker(
            id=worker.id,
            name=worker.name,
            resource_class=worker.resource_class,
            slots=worker.slots,
            devices=[{"name": device.name, "memory": device.memory} for device in worker.devices],
            capabilities=sorted(worker.capabilities),
            versions=dict(worker.versions),
            **said,
        )
    )


def leave(session: Session, worker_id: str) -> None:
    """Delete the row of a worker that ends."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def capacities(session: Session) -> Sequence[Capacity]:
    """List what the living workers that still claim have for jobs."""
    alive = select(Worker.capabilities, Worker.devices).where(Worker.alive_until > now(), ~Worker.is_stopping)
    return [
        Capacity(frozenset(capabilities), tuple(device["memory"] for device in devices))
        for capabilities, devices in session.execute(alive)
    ]


def list_workers(session: Session, *, after: str | None, limit: int, order: Order) -> Part[Worker]:
    """List the workers by the time of their start."""
    return list_rows(session, Worker, Worker.id, Place([], []), after=after, limit=limit, order=order)


def held_by(session: Session, names: Iterable[str]) -> Mapping[str, Sequence[Held]]:
    """List what workers hold, by the name of the worker."""
    wanted = list(names)
    found: dict[str, list[Held]] = defaultdict(list)
    if not wanted:
        return found
    # Whatever is held has a lease, and an index of these alone.
    jobs = select(Job.owner, Job.id, Job.attempt, Attempt.started_at)
    jobs = jobs.join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
    held = jobs.where(Job.lease_until.is_not(None), *AT_WORK, Job.owner.in_(wanted)).order_by(Job.id)
    for owner, job_id, attempt, since in session.execute(held):
        found[owner or ""].append(Held("job", job_id, attempt, since))
    tasks = select(Task.owner, Task.kind, Task.id, Task.attempt).where(Task.status == "running")
    for owner, kind, task_id, attempt in session.execute(tasks.where(Task.owner.in_(wanted)).order_by(Task.id)):
        found[owner or ""].append(Held(kind, task_id, attempt, None))
    return found
