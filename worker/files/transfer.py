"""Files between the object store and the work folder of a job: inputs, states and reports in, results and states out.

Transfers are retried while the store is out of reach, and end early when the job is to end.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_base, wait_exponential

from app.assets import inputs
from app.assets.inputs import InputFile
from app.assets.registry import Registry
from app.jobs import ingest
from app.jobs.leases import Claim, attempt_prefix
from app.schemas import Failure
from app.storage import ObjectStore, StorageUnavailable
from app.tables import State
from core.schema import events as reported
from core.schema.report import Reports
from worker import lease as lease_times
from worker.failures import job_failure
from worker.files.cache import Cache, read_verified
from worker.files.log_uploader import LogUploader
from worker.lease import JobLease, Lease
from worker.processes.training_process import shard_report_path

log = logging.getLogger(__name__)
Fetched = TypeVar("Fetched")

PUBLISH_SECONDS = 1800.0
"""Time for which storing a result is retried before the job fails."""
FETCH_TRIES = 5
FETCH_WAIT: wait_base = wait_exponential(multiplier=1)
"""Seconds between tries: 1, 2, 4, 8."""
_STORE_WAIT = wait_exponential(multiplier=0.1, max=30)
_FILE_SUFFIXES = {"base_model": ".safetensors", "dataset": ".zip", "extra_dataset": ".zip"}
_STATES = "states"
"""Folder of an attempt's states under its prefix in the object store."""


class InputUnavailable(Exception):
    """A file that the job needs cannot be fetched; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def fetch_with_retries(fetch: Callable[[], Fetched], lease: Lease) -> Fetched:
    """Call `fetch` until it succeeds, at most five times. Raises StorageUnavailable, StopRequested."""
    retrying = Retrying(
        retry=retry_if_exception_type(StorageUnavailable),
        stop=stop_after_attempt(FETCH_TRIES),
        wait=FETCH_WAIT,
        sleep=lease.sleep,
        before_sleep=lambda state: log.warning("%s; trying again", _error_of(state)),
        reraise=True,
    )
    return retrying(fetch)


@contextmanager
def fetched_inputs(folder: Path, lease: JobLease) -> Iterator[Registry]:
    """Yield a registry that knows where the project's own files that the job names are on this machine.

    They stay there while the block runs, and have links in the work folder. Raises InputUnavailable, StopRequested,
    LeaseLost.
    """
    claim, workplace = lease.claim, lease.workplace
    try:
        input_files = lease.write(partial(inputs.input_files, job_id=claim.root_job_id, spec=claim.spec))
    except inputs.Gone as error:
        raise InputUnavailable(job_failure("input_removed", error=error)) from error
    cache = Cache(workplace.settings.cache_dir, workplace.settings.cache_bytes)
    with ExitStack() as open_files:
        paths = {}
        for file in input_files:
            path = folder / f"{file.field}-{file.name}{_FILE_SUFFIXES[file.field]}"
            path.symlink_to(_hold(file, cache, open_files, lease))
            paths[file.field] = path
        yield replace(workplace.registry, fetched=paths)


def _hold(file: InputFile, cache: Cache, open_files: ExitStack, lease: JobLease) -> Path:
    def hold() -> Path:
        store = lease.workplace.store
        return open_files.enter_context(cache.hold(file.key, file.sha256, file.size, store, check=lease.check))

    try:
        return fetch_with_retries(hold, lease)
    except StorageUnavailable as error:
        values = {"name": file.name, "error": error}
        raise InputUnavailable(job_failure("input_unavailable", field=file.field, **values)) from error


def fetch_shard_reports(folder: Path, lease: JobLease) -> None:
    """Fetch the reports of all shards into the work folder, to be merged. Raises InputUnavailable, StopRequested,
    LeaseLost."""
    reports = lease.write(partial(ingest.reports_of_shards, claim=lease.claim))
    for number, (key, sha256) in enumerate(reports, start=1):
        try:
            content = fetch_with_retries(partial(_read_all, key, sha256, lease.workplace.store), lease)
        except StorageUnavailable as error:
            raise InputUnavailable(job_failure("shard_unavailable", error=error)) from error
        shard_report_path(folder, number).write_bytes(content)


def read_report(key: str, sha256: str, store: ObjectStore) -> Reports:
    """Read a report. Raises StorageUnavailable, and ValidationError when it is not one."""
    return Reports.read(_read_all(key, sha256, store))


def _read_all(key: str, sha256: str, store: ObjectStore) -> bytes:
    return b"".join(read_verified(key, sha256, store))


def fetch_states(folder: Path, lease: JobLease, logs: LogUploader) -> None:
    """Fetch the newest complete state of earlier attempts and the files that belong to it, with a warning in the job's
    history for each that is skipped because it cannot be read. Raises StopRequested, LeaseLost."""
    states = lease.write(partial(ingest.states, claim=lease.claim))

    def fetch_first(kind: str, max_step: float = inf) -> State | None:
        for state in states:
            if state.kind == kind and state.step <= max_step:
                try:
                    _fetch_state(state, folder / state.name, lease)
                except StorageUnavailable as error:
                    skipped = f"the {kind} of step {state.step} is skipped for an earlier one, if any: {error}"
                    logs.note(skipped)
                    _warn(lease, "state_unavailable", skipped)
                else:
                    return state
        return None

    # Verdicts need no other file; the best weights are of the state's step or of an earlier one.
    fetch_first("verdicts")
    if resumed := fetch_first("state"):
        fetch_first("best", resumed.step)


def _fetch_state(state: State, path: Path, lease: JobLease) -> None:
    try:
        with path.open("wb") as file:
            for chunk in read_verified(state.key, state.sha256, lease.workplace.store):
                lease.check()
                file.write(chunk)
    except StorageUnavailable:
        path.unlink(missing_ok=True)
        raise
    job, attempt = lease.claim.job_id, lease.claim.attempt
    log.info("job %s: attempt %d has the %s of step %d", job, attempt, state.kind, state.step)


def _warn(lease: JobLease, code: str, message: str) -> None:
    """Put a warning into the job's history."""
    log.warning("job %s: %s", lease.claim.job_id, message)
    warning = reported.Warned(code=code, message=message)
    lease.write(partial(ingest.record, claim=lease.claim, events=[warning]))


class Delivery:
    """Stores the files that one attempt reports as saved.

    Checkpoints and reports are the job's results: storing them is retried for PUBLISH_SECONDS. States are for the
    next attempt: one that cannot be stored is kept back and stored at the end, unless a later one takes its place.
    """

    def __init__(self, folder: Path, lease: JobLease) -> None:
        self._folder = folder
        self._lease = lease
        self._claim = lease.claim
        self._store = lease.workplace.store
        self._unstored: dict[str, reported.Saved] = {}
        """The last state of each kind that could not be stored."""

    def deliver(self, saved: reported.Saved) -> None:
        """Store a file and record it in the database. Raises StorageUnavailable, StopRequested, LeaseLost."""
        if saved.kind in ("checkpoint", "report"):
            self._store_result(saved)
            return
        try:
            self._store_state(saved)
        except StorageUnavailable as error:
            # The training may have replaced it by a newer one meanwhile.
            if self._is_unchanged(saved):
                self._keep_back(saved, error)
            else:
                remove(self._state_prefix(saved), self._store)

    def store_unstored_states(self) -> None:
        """Try again to store the last states, which are lost with this work folder otherwise. Raises LeaseLost."""
        deadline = time.monotonic() + min(lease_times.PAUSE_GRACE_SECONDS, PUBLISH_SECONDS)
        for saved in list(self._unstored.values()):
            # A changed one belonged to an evaluation that is over.
            if self._is_unchanged(saved):
                retrying = self._retrying(saved, deadline - time.monotonic())
                with suppress(StorageUnavailable):
                    retrying(self._store_state, saved)

    def _store_result(self, saved: reported.Saved) -> None:
        retrying = self._retrying(saved, PUBLISH_SECONDS, is_result=True)
        key = retrying(self._put, saved, f"{self._claim.prefix}/{Path(saved.path).name}")
        self._lease.write(partial(ingest.save, claim=self._claim, saved=saved, key=key))

    def _store_state(self, saved: reported.Saved) -> None:
        name = Path(saved.path).name
        key = self._put(saved, f"{self._state_prefix(saved)}/{name}")
        change = partial(ingest.save_state, claim=self._claim, saved=saved, name=name, key=key)
        outdated = self._lease.write(change)
        self._unstored.pop(saved.kind, None)
        discard_states(outdated, self._store)

    def _put(self, saved: reported.Saved, key: str) -> str:
        """Store a file, read it back to verify it, and return its key. Raises StorageUnavailable."""
        path = self._folder / Path(saved.path).name
        for candidate in (key, *_spare_keys(key)):
            # An earlier try may have taken the key: one that was cut off after the file had arrived.
            with suppress(FileExistsError):
                self._store.put(candidate, path)
            if _sha256_of(self._store.read(candidate)) == saved.sha256:
                return candidate
            if not self._is_unchanged(saved):
                break
        raise StorageUnavailable(f"{key}: the stored content differs from what was sent")

    def _keep_back(self, saved: reported.Saved, error: StorageUnavailable) -> None:
        self._log_failure(saved, error)
        if saved.kind not in self._unstored:
            _warn(self._lease, "state_not_stored", f"the {saved.kind} of step {saved.step} cannot be stored: {error}")
        self._unstored[saved.kind] = saved

    def _retrying(self, saved: reported.Saved, seconds: float, *, is_result: bool = False) -> Retrying:
        """Retry for `seconds`, the last time at their end. Storing a result warns in the job's history when it fails
        first, and ends when the job is to end; storing a state at the end of an attempt does neither."""

        def note(state: RetryCallState) -> None:
            error = _error_of(state)
            self._log_failure(saved, error)
            if is_result and state.attempt_number == 1:
                _warn(self._lease, "storage_unavailable", f"the {saved.kind} cannot be stored yet: {error}")
            if is_result:
                self._lease.check()

        def wait(state: RetryCallState) -> float:
            return max(0.0, min(_STORE_WAIT(state), seconds - (state.seconds_since_start or 0.0)))

        return Retrying(
            retry=retry_if_exception_type(StorageUnavailable),
            stop=stop_after_delay(seconds),
            wait=wait,
            sleep=self._lease.sleep if is_result else time.sleep,
            after=note,
            reraise=True,
        )

    def _log_failure(self, saved: reported.Saved, error: BaseException | None) -> None:
        log.warning("job %s: its %s cannot be stored now: %s", self._claim.job_id, saved.kind, error)

    def _state_prefix(self, saved: reported.Saved) -> str:
        return f"{self._claim.prefix}/{_STATES}/{saved.kind}-{saved.step}"

    def _is_unchanged(self, saved: reported.Saved) -> bool:
        with suppress(FileNotFoundError), (self._folder / Path(saved.path).name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == saved.sha256
        return False


def discard_states(keys: Iterable[str], store: ObjectStore) -> None:
    """Remove states that are no longer needed; each has a folder of its own."""
    for key in keys:
        remove(key.rpartition("/")[0], store)


def discard_all_states(claim: Claim, store: ObjectStore) -> None:
    """Remove all states of all attempts at the job."""
    for attempt in range(1, claim.attempt + 1):
        remove(f"{attempt_prefix(claim.job_id, attempt)}/{_STATES}", store)


def remove(prefix: str, store: ObjectStore) -> None:
    """Remove all objects under a key; garbage collection removes them later when that fails."""
    try:
        store.delete(prefix)
    except StorageUnavailable as error:
        log.warning("outdated files stay in the object store for now: %s", error)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _spare_keys(key: str) -> Iterator[str]:
    folder, _, name = key.rpartition("/")
    return (f"{folder}/again-{number}/{name}" for number in (1, 2))


def _sha256_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
