"""What has to be done now and then, whoever does it: every API process runs all chores, each in a thread of its own.

A chore is idempotent and safe in several processes at once: it takes what it works on by a short transaction. It may be
cut off anywhere, and must not wait for anything without a limit.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread

from app import files, jobs, quotas, relay, sweeping, uploads, webhooks
from app.database import AWAY, Database, why
from app.queue import Doorbell, needs
from app.settings import Settings
from app.storage import ObjectStore, StorageUnavailable

log = logging.getLogger(__name__)

_LONGEST_PART_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Premises:
    """What a chore is given."""

    settings: Settings
    database: Database
    store: ObjectStore
    doorbell: Doorbell
    stopping: Event = field(default_factory=Event)
    """Set when a chore that waits for something is to leave it."""


@dataclass(frozen=True)
class Chore:
    """Something to do every so many seconds."""

    name: str
    every: float
    do: Callable[[Premises], None]


def take_back_expired_jobs(premises: Premises) -> None:
    """Queue the jobs of lost workers again, and let jobs follow their shards; where no worker is left, nobody else
    would."""
    with premises.database.writing() as session:
        jobs.settle(session)
    with premises.database.writing() as session:
        jobs.expire(session, jobs.Patience.of(premises.settings))


def ring_again(premises: Premises) -> None:
    """Tell the workers once more of jobs and files that have waited for a while: a ring may have been lost."""
    if not premises.doorbell.is_there:
        return
    with premises.database.reading() as session:
        wanted = {needs(gpus) for gpus in jobs.gpus_wanted(session, seconds=10)}
        if files.have_waited(session, seconds=10):
            wanted.add(needs(1))
    for resource in wanted:
        premises.doorbell.ring(resource)


def send_webhooks(premises: Premises) -> None:
    """Send what webhooks are to be told, for as long as there is something to send."""
    relay.send_all(premises.settings, premises.database, premises.stopping)


def forget_old_deliveries(premises: Premises) -> None:
    """Keep the log of deliveries to its length."""
    with premises.database.writing() as session:
        webhooks.forget(session, days=premises.settings.webhook_keep_days)


def verify_uploads(premises: Premises) -> None:
    """Verify the uploads that were too large for the request that completed them, or whose process has gone."""
    with premises.database.reading() as session:
        waiting = uploads.waiting(session)
    for upload_id in waiting:
        try:
            uploads.verify(upload_id, premises.database, premises.store)
        except StorageUnavailable as error:
            log.warning("upload %s cannot be verified now: %s", upload_id, error)


def clear_uploads_away(premises: Premises) -> None:
    """Give up uploads that have been left alone, and remove what ended ones have left behind."""
    with premises.database.writing() as session:
        uploads.expire(session)
    for left in premises.settings.spool_dir.iterdir():
        # The part of a process that was killed: none takes so long.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LONGEST_PART_SECONDS:
                left.unlink()
    uploads.sweep(premises.database, premises.store)


def watch_gpu_time(premises: Premises) -> None:
    """Stop claiming jobs of projects whose GPU time of this month is used up."""
    with premises.database.writing() as session:
        quotas.watch_gpu_time(session, premises.settings)


def sweep_states(premises: Premises) -> None:
    """Let go of the states that nobody has retried from."""
    sweeping.sweep_states(premises.database, premises.store, days=premises.settings.state_retention_days)


def sweep_orphans(premises: Premises) -> None:
    """Remove the files that belong to nothing."""
    sweeping.sweep_orphans(premises.database, premises.store)


def clear_files_away(premises: Premises) -> None:
    """Take back the examinations of lost workers, and remove the objects of data sets and models that are gone."""
    with premises.database.writing() as session:
        for kind in files.TABLES:
            files.expire(session, kind, max_crashes=premises.settings.max_crashes)
    # Keys first: what is stored after that is nobody's leftover yet.
    keys = [key for kind in files.TABLES for key in premises.store.keys(f"{kind}s")]
    with premises.database.reading() as session:
        gone = files.leftovers(session, keys)
    for key in gone:
        premises.store.delete(key)


CHORES: Sequence[Chore] = (
    Chore("take back expired jobs", 15, take_back_expired_jobs),
    Chore("sweep states", 600, sweep_states),
    Chore("sweep orphans", 3600, sweep_orphans),
    Chore("ring for waiting jobs again", 10, ring_again),
    Chore("send webhooks", 1, send_webhooks),
    Chore("forget old deliveries", 3600, forget_old_deliveries),
    Chore("verify uploads", 2, verify_uploads),
    Chore("clear uploads away", 60, clear_uploads_away),
    Chore("look at the GPU time of projects", 60, watch_gpu_time),
    Chore("clear files away", 60, clear_files_away),
)


class Upkeep:
    """The threads that do the chores."""

    def __init__(self, premises: Premises, chores: Sequence[Chore] = CHORES) -> None:
        self._premises = premises
        self._threads = [Thread(target=self._repeat, args=(chore,), daemon=True) for chore in chores]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each chore end what it is at."""
        self._premises.stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _repeat(self, chore: Chore) -> None:
        while not self._premises.stopping.wait(chore.every):
            try:
                chore.do(self._premises)
            except (*AWAY, StorageUnavailable) as error:
                log.warning("cannot %s now: %s", chore.name, why(error))
            except Exception:
                # A mistake in one round must not end the chore for good.
                log.exception("could not %s", chore.name)
