"""The worker's row, which tells others that it lives and what it has for jobs."""

import logging
from contextlib import suppress
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self

from app.jobs import workers
from app.platform.database import AWAY, why
from worker.workplace import Workplace

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
"""Longest time until the row says that the worker stops, and longest wait for the thread at the end."""


class Presence:
    """The worker's row, kept by a thread while the `with` block runs, and deleted at its end.

    It says that the process lives, however busy the worker is; each job has a lease of its own. A database that is out
    of reach, or has another schema, is left alone.
    """

    def __init__(self, workplace: Workplace) -> None:
        self.worker = workplace.description
        self._workplace = workplace
        self._ended = Event()
        self._thread = Thread(target=self._keep, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=_TICK_SECONDS)
        # One that hangs at a database must not keep the worker from ending: the row says by itself that it is old.
        if not self._thread.is_alive():
            with suppress(*AWAY), self._workplace.database.writing() as session:
                workers.leave(session, self.worker.id)

    def _keep(self) -> None:
        settings, stopping = self._workplace.settings, self._workplace.stopping
        due, said_stopping = 0.0, False
        while True:
            is_stopping = stopping.is_set()
            if monotonic() >= due or is_stopping != said_stopping:
                self._beat(is_stopping=is_stopping)
                due, said_stopping = monotonic() + settings.heartbeat_seconds, is_stopping
            if self._ended.wait(min(settings.heartbeat_seconds, _TICK_SECONDS)):
                return

    def _beat(self, *, is_stopping: bool) -> None:
        database, seconds = self._workplace.database, self._workplace.settings.lease_seconds
        try:
            # The slots say it in the log.
            if database.schema().complaint:
                return
            with database.writing() as session:
                workers.beat(session, self.worker, seconds=seconds, is_stopping=is_stopping)
        except AWAY as error:
            log.debug("the worker cannot say that it lives: %s", why(error))
        except Exception:
            # The thread must go on: jobs would wait for a worker that is there.
            log.exception("the worker cannot say that it lives")
