"""Keeping hold of a job: a thread that renews the lease on time, however busy or silent the run is."""

import logging
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import jobs
from app.database import Database
from app.jobs import Claim, LostOwnership
from app.schemas import Status
from app.settings import Settings
from worker.pulse import Pulse
from worker.trainer import Trainer

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
_TICK_SECONDS = 1.0
"""Whoever cancels a job, or stops a worker, does not wait longer than this."""


class Lease:
    """A claim that is kept as long as the block runs, and the training process that has to end when it is not.

    The process is stopped when somebody cancels the job or this worker is to stop, and killed at once when the job is
    another worker's or the database has been out of reach for two thirds of the lease, that is before anybody else can
    have the job.
    """

    def __init__(
        self, claim: Claim, trainer: Trainer, *, database: Database, settings: Settings, stopping: Event, pulse: Pulse
    ) -> None:
        self.stopped = False
        self._lost = False
        self._claim = claim
        self._trainer = trainer
        self._database = database
        self._settings = settings
        self._stopping = stopping
        self._pulse = pulse
        self._renewed_at = monotonic()
        self._released = Event()
        self._thread = Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()

    def write(self, change: Callable[[Session], Answer]) -> Answer:
        """Commit a change, trying again while the database is out of reach. Raises LostOwnership."""
        while not self._lost:
            try:
                with self._database.writing() as session:
                    return change(session)
            except OperationalError as error:
                log.warning("job %s: the database is out of reach: %s", self._claim.job_id, error.orig)
                sleep(self._settings.poll_seconds)
        raise LostOwnership(self._claim.job_id)

    def _keep(self) -> None:
        while not self._released.wait(min(self._settings.poll_seconds, _TICK_SECONDS)):
            self._pulse.beat()
            try:
                status = self._touch()
            except (LostOwnership, OperationalError) as error:
                if isinstance(error, LostOwnership) or self._age() > self._settings.lease_seconds * 2 / 3:
                    self._lost = True
                    self._trainer.kill()
                    return
            else:
                if status == "cancelling" or self._stopping.is_set():
                    self.stopped = True
                    self._trainer.stop(grace=self._settings.cancel_grace_seconds)
                    return

    def _touch(self) -> Status:
        """Renew the lease when it is time, else only look what is asked."""
        if self._age() < self._settings.heartbeat_seconds:
            with self._database.reading() as session:
                return jobs.look(session, self._claim)
        before = monotonic()
        with self._database.writing() as session:
            status = jobs.heartbeat(session, self._claim, lease_seconds=self._settings.lease_seconds)
        self._renewed_at = before
        return status

    def _age(self) -> float:
        return monotonic() - self._renewed_at
