"""The worker that needs no broker: it polls the database. `python -m worker.polling` runs it beside the API."""

import logging
import signal
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread

from app.assets.registry import Registry
from app.jobs import claims
from app.jobs.claims import RetryPolicy
from app.jobs.leases import Claim
from app.platform import logs
from app.platform.database import AWAY, Database, open_database, why
from app.platform.outages import Outage
from app.platform.settings import Settings
from app.storage import open_store
from worker.attempt import run
from worker.host import make_gpu_devices, protect_memory
from worker.inspector import inspect_next
from worker.presence import Presence
from worker.workplace import Workplace

log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.2


class DoorbellListener:
    """Wakes slots that wait for work: each ring wakes one of them, and the stop wakes all of them from then on."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        # Unlike that of a Queue, its put may be called by a signal handler.
        self._rings: SimpleQueue[Event] = SimpleQueue()

    def ring(self) -> None:
        """Wake a slot, and return when one has answered or the worker stops. A busy slot answers after its job."""
        answered = Event()
        self._rings.put(answered)
        while not (answered.wait(_CHECK_SECONDS) or self._stopping.is_set()):
            pass

    def stop(self) -> None:
        """Stop the worker, and wake all slots."""
        self._stopping.set()
        self._rings.put(Event())

    def wait(self, seconds: float) -> None:
        """Wait for a ring or the stop, at most for `seconds`."""
        with suppress(Empty):
            self._rings.get(timeout=seconds).set()
        if self._stopping.is_set():
            self._rings.put(Event())


def work(workplace: Workplace, listener: DoorbellListener) -> None:
    """Claim and run jobs, several at once if the settings say so, until the worker stops."""
    outage = Outage(log, "the database is out of reach", "the database is back")
    arguments = (workplace, listener, outage)
    slots = [Thread(target=_work_in_slot, args=arguments) for _ in range(workplace.settings.concurrency)]
    with Presence(workplace):
        for slot in slots:
            slot.start()
        for slot in slots:
            slot.join()


def _work_in_slot(workplace: Workplace, listener: DoorbellListener, outage: Outage) -> None:
    logged = ""
    while not workplace.stopping.is_set():
        workplace.heartbeat.beat()
        try:
            complaint = workplace.database.schema().complaint
            outage.ends()
            if complaint and complaint != logged:
                log.warning("no job is claimed: %s", complaint)
            logged = complaint
            claim = None if complaint else _claim(workplace)
            if claim:
                with logs.about(job_id=claim.job_id, attempt=claim.attempt):
                    run(claim, workplace)
                continue
            if inspect_next(workplace):
                continue
        except AWAY as error:
            outage.lasts(why(error))
        except Exception:
            # A bug met by one job must not end the others; the lease of that job runs out, and it is claimed again.
            log.exception("the worker failed while it ran a job")
        listener.wait(workplace.settings.poll_seconds)


def _claim(workplace: Workplace) -> Claim | None:
    with workplace.database.writing() as session:
        return claims.claim(
            session,
            worker=workplace.description.name,
            lease_seconds=workplace.settings.lease_seconds,
            retry_policy=RetryPolicy.of(workplace.settings),
            running_quota=workplace.settings.quota_running_jobs,
            capacity=workplace.description.capacity,
        )


def open_workplace() -> Workplace:
    """Set up logging and a workplace from the environment."""
    protect_memory()
    make_gpu_devices()
    settings = Settings.from_environment()
    logs.set_up(settings)
    opened = open_database if settings.migrate_at_start else Database
    return Workplace(
        settings,
        opened(settings.database_url),
        open_store(settings),
        Registry(settings.models_dir, settings.datasets_dir),
    )


def serve(workplace: Workplace) -> None:
    """Work until SIGTERM or SIGINT; running jobs are handed back."""
    listener = DoorbellListener(workplace.stopping)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: listener.stop())
    log.info("worker ready")
    work(workplace, listener)
    workplace.store.close()
    workplace.database.close()


if __name__ == "__main__":
    serve(open_workplace())
