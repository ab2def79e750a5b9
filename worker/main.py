"""The worker of a server: `python -m worker.main`. A message broker wakes it, where there is one, and it polls as well.

This is a Celery application with one task, which does no work: it rings for the very loop that `worker.polling` runs.
So a consumer that hears nothing costs seconds and no job, and what runs a job is one process, to which a signal is
enough. A ring is held until a slot of this worker is free to hear it: a busy worker leaves the others to idle ones.
"""

import logging
import sys
from threading import Thread

from celery import Celery
from celery.signals import setup_logging, worker_shutting_down

from app.platform.queue import HEARD, KEY_PREFIX, LOOK_FOR_WORK, ON_THE_WIRE
from app.platform.settings import Settings
from worker import polling
from worker.attempt import Workplace
from worker.bell import Bell

log = logging.getLogger(__name__)


def application(settings: Settings, bell: Bell) -> Celery:
    """Make the receiving end of the queue. It acknowledges early: it is the row that must not be lost."""
    celery = Celery("temper", broker=settings.broker_url, set_as_current=False)
    celery.conf.update(
        ON_THE_WIRE,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_time_limit=None,
        task_default_queue=settings.resource_class,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.concurrency,
        # A thread that waits for a slot: there is nothing that a process of its own would protect.
        worker_pool="threads",
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=5,
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            "visibility_timeout": 3600,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "retry_on_timeout": True,
        },
    )
    celery.task(name=LOOK_FOR_WORK)(bell.ring)
    return celery


def serve(place: Workplace) -> int:
    """Work until a signal says stop, hand running jobs back, and give the exit status."""
    if not place.settings.broker_url:
        polling.serve(place)
        return 0
    bell = Bell(place.stopping)
    slots = Thread(target=polling.work, args=(place, bell))
    slots.start()
    try:
        return _listen(place.settings, bell)
    finally:
        bell.stop()
        slots.join()
        place.store.close()
        place.database.close()


def _listen(settings: Settings, bell: Bell) -> int:
    """Hear rings until a signal says stop."""

    def stop(**_: object) -> None:
        bell.stop()

    def leave_as_it_is(**_: object) -> None:
        """Celery sets logging up where nobody says that it is."""

    worker_shutting_down.connect(stop)
    setup_logging.connect(leave_as_it_is)
    consumer = application(settings, bell).Worker(
        queues=list(HEARD[settings.resource_class]),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel=logging.INFO,
    )
    log.info("worker ready, of class %s", settings.resource_class)
    consumer.start()
    status: int = consumer.exitcode or 0
    return status


if __name__ == "__main__":
    sys.exit(serve(polling.open_workplace()))
