"""An attempt's log: what the training process writes for people and what its supervisor did, kept in the object store.

It goes there in parts, at intervals and at the end, so that it outlives the worker. A part is real when the attempt's
row counts it. No secret that this worker knows is in it, and nothing that looks like one.
"""

import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

from app.jobs import ingest
from app.jobs.leases import Claim, LeaseLost, log_key
from app.platform.redaction import known_secrets, redact
from app.platform.settings import Settings
from app.storage import ObjectStore, StorageUnavailable
from worker.lease import Lease

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""Seconds between two uploads of what a run has logged."""
MAX_LOG_BYTES = 16 * 1024**2
"""Most bytes of one attempt's log that are kept."""


class Logbook:
    """One attempt's log while it grows in a file, and the thread that stores it."""

    def __init__(self, claim: Claim, lease: Lease, folder: Path, *, store: ObjectStore, settings: Settings) -> None:
        self.path = folder / "stderr.log"
        self.path.touch()
        self._part = folder / "part.log"
        self._claim = claim
        self._lease = lease
        self._store = store
        self._settings = settings
        self._secrets = known_secrets(settings)
        self._parts = self._read = self._stored = 0
        self._lock = Lock()
        self._closing = Event()
        self._thread = Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def note(self, text: str) -> None:
        """Write a line of the supervisor's."""
        with self.path.open("a") as file:
            file.write(f"[temper {datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z] {text}\n")

    def store(self, *, whole: bool = False) -> None:
        """Store what is new, up to the last full line or the whole of it. A store that is away gets it next time.
        Raises LeaseLost."""
        with self._lock:
            key = log_key(self._claim.job_id, self._claim.attempt, self._parts + 1)
            try:
                content = self._new(whole=whole)
                if not content:
                    return
                part = self._without_secrets(content)
                self._part.write_bytes(part)
                self._put(key)
            except (StorageUnavailable, OSError) as error:
                log.warning("job %s: its log cannot be stored now: %s", self._claim.job_id, error)
                return
            self._lease.write(partial(ingest.add_log, claim=self._claim, size=len(part)))
            self._parts += 1
            self._read += len(content)
            self._stored += len(part)

    def _put(self, key: str) -> None:
        try:
            self._store.put(key, self._part)
        except FileExistsError:
            # Of a try that was cut off before the row counted it; by now there is more to say.
            self._store.delete(key)
            self._store.put(key, self._part)

    def _new(self, *, whole: bool) -> bytes:
        left = MAX_LOG_BYTES - self._stored
        with self.path.open("rb") as file:
            file.seek(self._read)
            content = file.read(max(left, 0))
            more = bool(file.read(1))
        if whole and not more:
            return content
        # A line is stored in one piece: half a secret would not be known for one.
        return content[: content.rfind(b"\n") + 1]

    def _without_secrets(self, content: bytes) -> bytes:
        # What is no UTF-8 stays as it is.
        text = content.decode(errors="surrogateescape")
        return redact(text, self._secrets).encode(errors="surrogateescape")

    def _keep(self) -> None:
        while not self._closing.wait(STORE_SECONDS):
            try:
                self.store()
            except LeaseLost:
                return
