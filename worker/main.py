"""The worker of a server: `python -m worker.main`. It polls, and a message broker, where there is one, wakes it early.

This is a Celery application with one task, which does no work: it wakes the loop of `worker.polling`. A consumer that
receives nothing therefore delays a job by seconds and loses none, and jobs run in one process, which one signal stops.
The task waits until a slot of this worker is free: a busy worker leaves further messages to idle workers.
"""

import logging
import os
import signal
import sys
from threading import Thread

from celery import Celery
from celery.signals import setup_logging
from celery.worker import state

from app.platform.broker import KEY_PREFIX, LOOK_FOR_WORK, ON_THE_WIRE
from app.platform.queue import HEARD
from app.platform.settings import Settings
from worker import polling
from worker.polling import DoorbellListener
from worker.workplace import Workplace

log = logging.getLogger(__name__)


def application(settings: Settings, listener: DoorbellListener) -> Celery:
    """Make the consumer of the queue. It acknowledges early: a lost message loses no job."""
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
        # A task only waits for a slot, so a thread is enough for it.
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
    celery.task(name=LOOK_FOR_WORK)(listener.ring)
    return celery


def serve(workplace: Workplace) -> int:
    """Work until SIGTERM or SIGINT, hand running jobs back, and return the exit status."""
    if not workplace.settings.broker_url:
        polling.serve(workplace)
        return 0
    listener = DoorbellListener(workplace.stopping)
    slots = Thread(target=polling.work, args=(workplace, listener))
    slots.start()
    try:
        return _listen(workplace.settings, listener)
    finally:
        listener.stop()
        slots.join()
        workplace.store.close()
        workplace.database.close()


def _listen(settings: Settings, listener: DoorbellListener) -> int:
    """Consume messages until SIGTERM or SIGINT."""

    def end_on_signals(_: object) -> None:
        """Take the place of Celery's own handlers, which write to the standard output past the log."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def stop(*_: object) -> None:
        listener.stop()
        state.should_stop = os.EX_OK

    def keep_logging(**_: object) -> None:
        """Keep Celery from setting up logging: it does so when this signal has no receiver."""

    setup_logging.connect(keep_logging)
    consumer = application(settings, listener).Worker(
        queues=list(HEARD[settings.resource_class]),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel=logging.INFO,
    )
    consumer.install_platform_tweaks = end_on_signals
    log.info("worker ready, of class %s", settings.resource_class)
    consumer.start()
    status: int = consumer.exitcode or 0
    return status


if __name__ == "__main__":
    sys.exit(serve(polling.open_workplace()))
