"""An attempt's log, stored in parts while it grows: what its training process writes to stderr, and the worker's notes.

Parts are stored at intervals and at the end, so that the log outlives the worker. A part counts once the attempt's row
counts it. Secrets that the worker knows, and everything that looks like a secret, are removed.
"""

import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

from app.jobs import ingest
from app.jobs.leases import LeaseLost, log_key
from app.platform.redaction import known_secrets, redact
from app.storage import StorageUnavailable
from worker.lease import JobLease

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""Seconds between two uploads of what is new in a log."""
MAX_LOG_BYTES = 16 * 1024**2
"""Most bytes of one attempt's log that are stored."""


class LogUploader:
    """The log of one attempt, a file in its work folder, and the thread that stores it while the block runs."""

    def __init__(self, folder: Path, lease: JobLease) -> None:
        self.path = folder / "stderr.log"
        self.path.touch()
        self._part = folder / "part.log"
        self._claim = lease.claim
        self._lease = lease
        self._store = lease.workplace.store
        self._secrets = known_secrets(lease.workplace.settings)
        self._parts = self._read = self._stored = 0
        self._lock = Lock()
        self._closing = Event()
        self._thread = Thread(target=self._store_regularly, daemon=True)

    def __enter__(self) -> Self:
        self.note(f"attempt {self._claim.attempt} begins")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def note(self, text: str) -> None:
        """Write a line of the worker's own."""
        with self.path.open("a") as file:
            file.write(f"[temper {datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z] {text}\n")

    def store(self, *, everything: bool = False) -> None:
        """Store what is new: complete lines, or everything at the end. What the store does not take is tried next time.
        Raises LeaseLost."""
        with self._lock:
            key = log_key(self._claim.job_id, self._claim.attempt, self._parts + 1)
            try:
                content = self._new(everything=everything)
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
            # An earlier try was cut off before the row counted its part, and the log is longer now.
            self._store.delete(key)
            self._store.put(key, self._part)

    def _new(self, *, everything: bool) -> bytes:
        left = MAX_LOG_BYTES - self._stored
        with self.path.open("rb") as file:
            file.seek(self._read)
            content = file.read(max(left, 0))
            more = bool(file.read(1))
        if everything and not more:
            return content
        # Lines are not split: half a secret would not be recognised.
        return content[: content.rfind(b"\n") + 1]

    def _without_secrets(self, content: bytes) -> bytes:
        # Bytes that are not UTF-8 stay as they are.
        text = content.decode(errors="surrogateescape")
        return redact(text, self._secrets).encode(errors="surrogateescape")

    def _store_regularly(self) -> None:
        while not self._closing.wait(STORE_SECONDS):
            try:
                self.store()
            except LeaseLost:
                return
