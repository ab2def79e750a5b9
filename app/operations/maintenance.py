"""Maintenance: tasks that each API process does periodically, each in a thread of its own.

A periodic task is idempotent and safe in several processes at once: it claims its work in a short transaction. It
may be cut off anywhere, and must not wait for anything without a limit.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread

from app import tasks
from app.assets import assets, inspections, uploads
from app.jobs import claims, shards, waiting
from app.jobs.requirements import Requirements
from app.operations import deletion, garbage_collection
from app.platform.database import AWAY, Database, why
from app.platform.outages import Outage
from app.platform.queue import Doorbell
from app.platform.settings import Settings
from app.projects import quotas
from app.storage import ObjectStore, StorageUnavailable
from app.webhooks import deliveries

log = logging.getLogger(__name__)

_LONGEST_PART_SECONDS = 6 * 3600


@dataclass(frozen=True)
class MaintenanceContext:
    """What a periodic task works with."""

    settings: Settings
    database: Database
    store: ObjectStore
    doorbell: Doorbell
    place: garbage_collection.Place = field(default_factory=garbage_collection.Place)
    """Where the sweep of orphans goes on."""
    asset_places: Mapping[str, garbage_collection.Place] = field(
        default_factory=lambda: {kind: garbage_collection.Place() for kind in assets.TABLES}
    )
    """Where the sweeps of the files of data sets and of models go on."""
    stopping: Event = field(default_factory=Event)
    """Set when a task that waits for something must return."""


@dataclass(frozen=True)
class PeriodicTask:
    """A function to call every `every` seconds."""

    name: str
    every: float
    do: Callable[[MaintenanceContext], None]


def take_back_expired_jobs(context: MaintenanceContext) -> None:
    """Queue the jobs of lost workers again, and let jobs follow their shards. Workers do so as well, but there may be
    none left."""
    with context.database.writing() as session:
        shards.update_parents(session)
    with context.database.writing() as session:
        claims.expire(session, claims.RetryPolicy.of(context.settings))


def ring_again(context: MaintenanceContext) -> None:
    """Ring again for jobs and tasks that have waited for a while: a message may have been lost."""
    if not context.doorbell.is_there:
        return
    with context.database.reading() as session:
        wanted = {requirements.resource_class for requirements in waiting.required(session, seconds=10)}
        if tasks.have_waited(session, inspections.KINDS, seconds=10):
            wanted.add(Requirements().resource_class)
    for resource in wanted:
        context.doorbell.ring(resource)


def send_webhooks(context: MaintenanceContext) -> None:
    """Send the deliveries that are due."""
    with context.database.reading() as session:
        if not deliveries.is_any_due(session):
            return
    # At first use: most instances have no webhook, and the HTTP client in it delays their start.
    from app.webhooks import sender

    sender.send_all(context.settings, context.database, context.stopping)


def delete_in_batches(context: MaintenanceContext) -> None:
    """Delete the rows of deleted jobs and projects, and what has been kept for long enough."""
    for step in (
        deletion.delete_jobs,
        deletion.forget_history,
        deletion.forget_keys,
        deletion.forget_uploads,
        deletion.forget_tasks,
        deletion.forget_deliveries,
        deletion.forget_workers,
    ):
        step(deletion.Round(context.database, context.stopping))
    deletion.delete_projects(deletion.Round(context.database, context.stopping), context.store)


def fold_totals(context: MaintenanceContext) -> None:
    """Add what transactions have counted to the totals."""
    deletion.fold_totals(deletion.Round(context.database, context.stopping))


def verify_uploads(context: MaintenanceContext) -> None:
    """Verify the uploads that were too large for the request that completed them, or whose process has crashed."""
    with context.database.reading() as session:
        waiting = uploads.waiting(session)
    for upload_id in waiting:
        try:
            uploads.verify(upload_id, context.database, context.store)
        except StorageUnavailable as error:
            log.warning("upload %s cannot be verified now: %s", upload_id, error)


def clear_uploads_away(context: MaintenanceContext) -> None:
    """Expire abandoned uploads, and delete the objects that ended uploads have left."""
    with context.database.writing() as session:
        uploads.expire(session)
    for left in context.settings.spool_dir.iterdir():
        # The part of a process that was killed: no part takes so long.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LONGEST_PART_SECONDS:
                left.unlink()
    uploads.sweep(context.database, context.store, context.stopping)


def watch_gpu_time(context: MaintenanceContext) -> None:
    """Stop claiming jobs of projects whose GPU time of this month is used up."""
    with context.database.writing() as session:
        quotas.watch_gpu_time(session, context.settings)


def sweep_states(context: MaintenanceContext) -> None:
    """Delete the states of jobs that ended badly and were not retried."""
    garbage_collection.sweep_states(context.database, context.store, days=context.settings.state_retention_days)


def sweep_orphans(context: MaintenanceContext) -> None:
    """Remove objects that no row references, for a limited number of jobs per round."""
    garbage_collection.sweep_orphans(context.database, context.store, context.place)


def take_back_expired_inspections(context: MaintenanceContext) -> None:
    """Queue the inspections of lost workers again."""
    with context.database.writing() as session:
        tasks.expire(session, inspections.KINDS, max_crashes=context.settings.max_crashes)


def sweep_asset_files(context: MaintenanceContext) -> None:
    """Remove the objects of data sets and models that are gone, for a limited number of them per round."""
    garbage_collection.sweep_asset_files(context.database, context.store, context.asset_places)


PERIODIC_TASKS: Sequence[PeriodicTask] = (
    PeriodicTask("take back expired jobs", 15, take_back_expired_jobs),
    PeriodicTask("sweep states", 600, sweep_states),
    PeriodicTask("sweep orphans", 60, sweep_orphans),
    PeriodicTask("ring for waiting jobs again", 10, ring_again),
    PeriodicTask("send webhooks", 1, send_webhooks),
    PeriodicTask("verify uploads", 2, verify_uploads),
    PeriodicTask("clear uploads away", 60, clear_uploads_away),
    PeriodicTask("look at the GPU time of projects", 60, watch_gpu_time),
    PeriodicTask("take back expired inspections", 60, take_back_expired_inspections),
    PeriodicTask("sweep files of assets", 60, sweep_asset_files),
    PeriodicTask("delete in batches", 15, delete_in_batches),
    PeriodicTask("fold totals", 10, fold_totals),
)


class Maintenance:
    """The threads that do the periodic tasks."""

    def __init__(self, context: MaintenanceContext, periodic_tasks: Sequence[PeriodicTask] = PERIODIC_TASKS) -> None:
        self._context = context
        self._threads = [Thread(target=self._repeat, args=(task,), daemon=True) for task in periodic_tasks]

    def start(self) -> None:
        """Start the thread of each periodic task."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until each task has ended what it does, for at most 5 s."""
        self._context.stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _repeat(self, task: PeriodicTask) -> None:
        outage = Outage(log, f"cannot {task.name} now", f"can {task.name} again")
        while not self._context.stopping.wait(task.every):
            try:
                task.do(self._context)
                outage.ends()
            except (*AWAY, StorageUnavailable) as error:
                outage.lasts(why(error))
            except Exception:
                # An error of ours in one round must not end the task for good.
                log.exception("could not %s", task.name)
