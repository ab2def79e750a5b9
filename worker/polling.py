"""The worker that needs no broker: it polls the database. `python -m worker.polling` runs it beside the API."""

import logging
import os
import signal
import socket
from threading import Thread

from app.assets.registry import Registry
from app.jobs import claims
from app.jobs.claims import RetryPolicy
from app.jobs.leases import Claim
from app.platform import logs
from app.platform.database import AWAY, Database, open_database, why
from app.platform.settings import Settings
from app.storage import open_store
from worker.attempt import Workplace, run
from worker.bell import Bell
from worker.inspector import inspect_next
from worker.machine import keep_to_itself

log = logging.getLogger(__name__)


def work(place: Workplace, bell: Bell) -> None:
    """Claim and run jobs, several at once if the settings say so, until the workplace is stopping."""
    slots = [Thread(target=_work_in_slot, args=(place, bell)) for _ in range(place.settings.concurrency)]
    for slot in slots:
        slot.start()
    for slot in slots:
        slot.join()


def _work_in_slot(place: Workplace, bell: Bell) -> None:
    told = ""
    while not place.stopping.is_set():
        place.pulse.beat()
        try:
            complaint = place.database.schema().complaint
            if complaint and complaint != told:
                log.warning("no job is claimed: %s", complaint)
            told = complaint
            claim = None if complaint else _claim(place)
            if claim:
                with logs.about(job_id=claim.job_id, attempt=claim.attempt):
                    run(claim, place)
                continue
            if inspect_next(place):
                continue
        except AWAY as error:
            log.warning("the database is out of reach: %s", why(error))
        except Exception:
            # A mistake of ours in one job must not end the others; its lease runs out, and the job is found again.
            log.exception("the supervisor failed")
        bell.wait(place.settings.poll_seconds)


def _claim(place: Workplace) -> Claim | None:
    with place.database.writing() as session:
        return claims.claim(
            session,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease_seconds=place.settings.lease_seconds,
            retry_policy=RetryPolicy.of(place.settings),
            running_quota=place.settings.quota_running_jobs,
            gpus=place.settings.most_gpus,
        )


def open_workplace() -> Workplace:
    """Set up a workplace, and logging, as the environment says."""
    keep_to_itself()
    settings = Settings.from_environment()
    logs.set_up(settings)
    migrated = open_database if settings.migrate_at_start else Database
    return Workplace(
        settings,
        migrated(settings.database_url),
        open_store(settings),
        Registry(settings.models_dir, settings.datasets_dir),
    )


def serve(place: Workplace) -> None:
    """Work until a signal says stop; running jobs are handed back."""
    bell = Bell(place.stopping)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: bell.stop())
    log.info("worker ready")
    work(place, bell)
    place.store.close()
    place.database.close()


if __name__ == "__main__":
    serve(open_workplace())
