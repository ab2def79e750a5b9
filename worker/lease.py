"""Keeping hold of a job: a thread that renews the lease on time, however busy or silent the run is, and passes on to
the training process what is asked of it."""

import logging
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy.orm import Session

from app.jobs import claims, ingest
from app.jobs.leases import Claim, LeaseLost
from app.platform.database import AWAY, Database, why
from app.platform.settings import Settings
from app.schemas import Status
from worker.pulse import Pulse
from worker.training_process import Trainer
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
_TICK_SECONDS = 1.0
"""Whoever cancels a job, or stops a worker, does not wait longer than this."""


class Lease:
    """A claim that is kept as long as the block runs, and the training process, once there is one, that has to end when
    it is not.

    The process is asked to end when somebody pauses or cancels the job or this worker is to stop, and killed when it
    does not in time. It is killed at once when it gets nowhere, when the job is another worker's, or when the database
    has been out of reach for two thirds of the lease, that is before anybody else can have the job.
    """

    def __init__(self, claim: Claim, *, database: Database, settings: Settings, stopping: Event, pulse: Pulse) -> None:
        self.ending = Event()
        """Set when the run was asked to end before its time."""
        self.killed: str | None = None
        """Why the process was killed, where nobody had asked for its end."""
        self.started = Event()
        """To be set when the process has said that it has started."""
        self._lost = Event()
        self._claim = claim
        self._database = database
        self._settings = settings
        self._stopping = stopping
        self._pulse = pulse
        self._process: tuple[Trainer, Watchdog] | None = None
        self._kill_at: float | None = None
        self._told_to_end = False
        self._stop_early = False
        self._told_to_stop = False
        self._tick = min(settings.poll_seconds, _TICK_SECONDS)
        self._renewed_at = monotonic()
        self._released = Event()
        self._writes = 0
        self._turn = Lock()
        # Two, because a database that hangs holds the one up for as long as it likes.
        self._guard = Thread(target=copy_context().run, args=(self._keep_guard,), daemon=True)
        self._contact = Thread(target=copy_context().run, args=(self._keep_contact,), daemon=True)

    def __enter__(self) -> Self:
        self._guard.start()
        self._contact.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        self._guard.join()
        # What a late heartbeat of ours does not find, it does not change.
        self._contact.join(timeout=_TICK_SECONDS)

    def write(self, change: Callable[[Session], Answer]) -> Answer:
        """Commit a change once, trying again while the database is out of reach. Raises LeaseLost."""
        with self._turn:
            answers: list[Answer] = []
            while not self._lost.is_set():
                try:
                    with self._database.writing() as session:
                        # A connection may break after the commit and before its answer: then it is done.
                        if not (answers and ingest.writes(session, self._claim) > self._writes):
                            answers = [change(session)]
                            ingest.count_write(session, self._claim, self._writes + 1)
                except AWAY as error:
                    log.warning("job %s: the database is out of reach: %s", self._claim.job_id, why(error))
                    self._lost.wait(self._settings.poll_seconds)
                else:
                    self._writes += 1
                    return answers[0]
        raise LeaseLost(self._claim.job_id)

    def watch_over(self, trainer: Trainer, watchdog: Watchdog) -> None:
        """Pass on to this process, from now on, what is asked of the run."""
        self._process = trainer, watchdog

    @property
    def why(self) -> str:
        """Say why the process was asked to end or killed, as the end of a sentence."""
        if self.killed:
            return f": it was killed, for {self.killed}"
        return ", as it was asked to" if self.ending.is_set() else ""

    def _keep_guard(self) -> None:
        while not self._released.wait(self._tick):
            self._pulse.beat()
            if self._age() > self._settings.lease_seconds * 2 / 3:
                self._lose()
            if self._process:
                self._rule(*self._process)
                if self._lost.is_set():
                    return

    def _keep_contact(self) -> None:
        while not self._released.wait(self._tick) and not self._lost.is_set():
            try:
                self._pass_on(self._touch())
            except LeaseLost:
                self._lose()
            except AWAY as error:
                log.debug("job %s: the database is out of reach: %s", self._claim.job_id, why(error))

    def _lose(self) -> None:
        self._lost.set()
        self.ending.set()

    def _pass_on(self, status: Status) -> None:
        """Note what is asked of the run by now."""
        seconds = self._settings.pause_grace_seconds
        if status == "cancelling":
            # A cancel need not wait for the state that a pause does.
            seconds = self._settings.cancel_grace_seconds
        elif status != "pausing" and not self._stopping.is_set():
            self._stop_early = status == "stopping"
            return
        self.ending.set()
        self._kill_at = min(self._kill_at or inf, monotonic() + seconds)

    def _rule(self, trainer: Trainer, watchdog: Watchdog) -> None:
        """Ask of the process what is asked of the run; kill it where it is over its time or gets nowhere."""
        if self._lost.is_set():
            trainer.kill()
        elif not trainer.runs:
            return
        elif self._kill_at is not None:
            if not self._told_to_end:
                self._told_to_end = True
                trainer.ask_to_pause()
            if monotonic() > self._kill_at:
                log.warning("job %s: the training process is killed: it did not end in time", self._claim.job_id)
                trainer.kill()
        elif reason := watchdog.finds_it_stalled(heard_at=trainer.heard_at):
            self.killed = reason
            log.warning("job %s: the training process is killed: %s", self._claim.job_id, reason)
            trainer.kill()
        elif self._stop_early and self.started.is_set() and not self._told_to_stop:
            self._told_to_stop = True
            trainer.ask_to_stop_early()

    def _touch(self) -> Status:
        """Renew the lease when it is time, else only look what is asked."""
        if self._age() < self._settings.heartbeat_seconds:
            with self._database.reading() as session:
                return claims.read_status(session, self._claim)
        before = monotonic()
        with self._database.writing() as session:
            status = claims.heartbeat(session, self._claim, lease_seconds=self._settings.lease_seconds)
        self._renewed_at = before
        return status

    def _age(self) -> float:
        return monotonic() - self._renewed_at
