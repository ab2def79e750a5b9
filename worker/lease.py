"""Leases on claimed work, kept by threads of their own, however busy or silent the work is."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from math import inf
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy.orm import Session
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_fixed

from app.jobs import claims, ingest
from app.jobs.failures import CrashCode
from app.jobs.leases import Claim, LeaseLost
from app.platform.database import AWAY, why
from app.platform.outages import Outage
from worker.processes.child_process import ChildProcess
from worker.processes.training_process import TrainingProcess
from worker.workplace import Workplace

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
CANCEL_GRACE_SECONDS = 5.0
"""Time that a training process gets to end when its job is cancelled, before it is killed."""
PAUSE_GRACE_SECONDS = 60.0
"""Time that it gets to save its state when its job is paused or its worker stops."""
_TICK_SECONDS = 1.0
"""Longest time until a cancel, or the stop of the worker, is noticed."""
_GIVE_UP_SHARE = 2 / 3
"""Share of the lease after which a worker that cannot renew it gives up, well before another one can claim the row."""


class StopRequested(Exception):
    """The work was asked to end early, or its lease is lost."""


@dataclass(frozen=True)
class HandedBack:
    """An ending: another worker may go on with the work. This is not a crash."""


@dataclass(frozen=True)
class Crashed:
    """An ending: the child process vanished. The work is repeated a limited number of times."""

    code: CrashCode
    """Why, for programs."""
    detail: str = ""
    """What is known beyond the code, for people."""


class Lease(ABC):
    """A lease on a row, kept while the `with` block runs, and the child process that must not outlive it.

    One thread renews the lease. Another one gives it up when the database has been out of reach for two thirds of the
    lease; they are two because a database that hangs blocks the first. Subclasses say how the row is renewed.
    """

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.workplace = workplace
        self.ending = Event()
        """Set when the work is to end early: by request, because the worker stops, or because the lease is lost."""
        self._name = name
        self._outage = Outage(log, f"{name}: the database is out of reach", f"{name}: the database is back")
        self._settings = workplace.settings
        self._lost = Event()
        self._released = Event()
        self._renewed_at = monotonic()
        self._tick = min(self._settings.poll_seconds, _TICK_SECONDS)
        self._process: ChildProcess | None = None
        self._renewer = Thread(target=copy_context().run, args=(self._keep_renewing,), daemon=True)
        self._guard = Thread(target=copy_context().run, args=(self._keep_guard,), daemon=True)

    def __enter__(self) -> Self:
        self._guard.start()
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        self._guard.join()
        # A renewal that hangs may come late: it changes nothing in a row that is no longer ours.
        self._renewer.join(timeout=_TICK_SECONDS)

    def write(self, change: Callable[[Session], Answer]) -> Answer:
        """Commit a change, trying again while the database is out of reach. Raises LeaseLost."""
        if self._lost.is_set():
            raise LeaseLost(self._name)
        retrying = Retrying(
            retry=retry_if_exception_type(AWAY),
            wait=wait_fixed(self._settings.poll_seconds),
            sleep=self._wait_unless_lost,
            before_sleep=self._log_outage,
        )
        answer: Answer = retrying(self._commit, change)
        self._outage.ends()
        return answer

    def check(self) -> None:
        """Raise StopRequested when the work is to end: for calls between the steps of long work."""
        if self.ending.is_set():
            raise StopRequested

    def sleep(self, seconds: float) -> None:
        """Sleep. Raises StopRequested as soon as the work is to end."""
        if self.ending.wait(seconds):
            raise StopRequested

    @abstractmethod
    def _contact(self, *, renews: bool) -> None:
        """Renew the lease in the row, or only read what is requested of the work. Raises LeaseLost."""

    def _request_end(self) -> None:
        self.ending.set()

    def _supervise(self) -> None:
        if self._process and self._process.is_running and self._lost.is_set():
            self._process.kill()

    def _commit(self, change: Callable[[Session], Answer]) -> Answer:
        with self.workplace.database.writing() as session:
            return change(session)

    def _wait_unless_lost(self, seconds: float) -> None:
        if self._lost.wait(seconds):
            raise LeaseLost(self._name)

    def _log_outage(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, AWAY):
            self._outage.lasts(why(error))

    def _keep_guard(self) -> None:
        while not self._released.wait(self._tick):
            self.workplace.heartbeat.beat()
            if self._age() > self._settings.lease_seconds * _GIVE_UP_SHARE:
                self._lose()
            if self.workplace.stopping.is_set():
                self._request_end()
            self._supervise()

    def _keep_renewing(self) -> None:
        while not self._released.wait(self._tick) and not self._lost.is_set():
            renews = self._age() >= self._settings.heartbeat_seconds
            before = monotonic()
            try:
                self._contact(renews=renews)
            except LeaseLost:
                self._lose()
            except AWAY as error:
                log.debug("%s: the database is out of reach: %s", self._name, why(error))
            else:
                self._renewed_at = before if renews else self._renewed_at

    def _lose(self) -> None:
        self._lost.set()
        self.ending.set()

    def _age(self) -> float:
        return monotonic() - self._renewed_at


class JobLease(Lease):
    """The lease on a claimed job, which also passes requests on to its training process.

    The process is asked to end when the job is paused or cancelled or the worker stops, and killed when it does not end
    in time. It is killed at once when it is stalled or the lease is lost.
    """

    def __init__(self, claim: Claim, workplace: Workplace) -> None:
        super().__init__(f"job {claim.job_id}", workplace)
        self.claim = claim
        self.started = Event()
        """To be set when the training process has reported Started."""
        self.killed: str | None = None
        """Why the process was killed, when that was not because of a request."""
        self._training: TrainingProcess | None = None
        self._kill_at: float | None = None
        self._pause_requested = False
        self._stop_early = False
        self._stop_requested = False
        self._commits = 0
        self._write_lock = Lock()

    def watch(self, process: TrainingProcess) -> None:
        """Pass requests on to this process from now on."""
        self._process = self._training = process

    @property
    def why(self) -> str:
        """Why the process was asked to end or killed, as the end of a sentence; empty when it was neither."""
        if self.killed:
            return f": it was killed because {self.killed}"
        return ", as requested" if self.ending.is_set() else ""

    def write(self, change: Callable[[Session], Answer]) -> Answer:
        """Commit a change exactly once, trying again while the database is out of reach. Raises LeaseLost."""
        answers: list[Answer] = []

        def change_once(session: Session) -> Answer:
            # The connection may have broken between the commit of an earlier try and its confirmation.
            if not (answers and ingest.writes(session, self.claim) > self._commits):
                answers[:] = [change(session)]
                ingest.count_write(session, self.claim, self._commits + 1)
            return answers[0]

        with self._write_lock:
            answer = super().write(change_once)
            self._commits += 1
            return answer

    def _contact(self, *, renews: bool) -> None:
        if renews:
            with self.workplace.database.writing() as session:
                status = claims.heartbeat(session, self.claim, lease_seconds=self._settings.lease_seconds)
        else:
            with self.workplace.database.reading() as session:
                status = claims.read_status(session, self.claim)
        self._stop_early = status == "stopping"
        if status == "cancelling":
            # A cancel does not wait for a saved state, as a pause does.
            self._request_end(CANCEL_GRACE_SECONDS)
        elif status == "pausing":
            self._request_end()

    def _request_end(self, grace_seconds: float | None = None) -> None:
        grace_seconds = PAUSE_GRACE_SECONDS if grace_seconds is None else grace_seconds
        self._kill_at = min(self._kill_at or inf, monotonic() + grace_seconds)
        super()._request_end()

    def _supervise(self) -> None:
        """Ask the process to end or to stop early; kill it when it is late or stalled, or when the lease is lost."""
        super()._supervise()
        process = self._training
        if process is None or not process.is_running:
            return
        if self._kill_at is not None:
            if not self._pause_requested:
                self._pause_requested = True
                process.request_pause()
            if monotonic() > self._kill_at:
                log.warning("%s: the training process is killed: it did not end in time", self._name)
                process.kill()
        elif stall := process.find_stall():
            self.killed = stall
            log.warning("%s: the training process is killed: %s", self._name, stall)
            process.kill()
        elif self._stop_early and self.started.is_set() and not self._stop_requested:
            self._stop_requested = True
            process.request_early_stop()
