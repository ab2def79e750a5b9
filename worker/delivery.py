"""A run's files on their way: states from the object store to the work folder before it begins, files that it has
written into the object store, and what is no longer needed out of it."""

import hashlib
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep

from app.jobs import ingest
from app.jobs.leases import Claim, attempt_prefix
from app.platform.settings import Settings
from app.storage import ObjectStore, StorageUnavailable
from app.tables import State
from core.schema import events as reported
from worker import lease as leases
from worker.fetching import Postponed, go_on, whole
from worker.lease import Lease

log = logging.getLogger(__name__)

_STATES = "states"
"""Where, below an attempt's prefix, its states lie."""
PUBLISH_SECONDS = 1800.0
"""Time for which a finished run waits for the object store to take its files before its job fails."""
_LONGEST_PAUSE = 30.0


class Delivery:
    """Takes the files that one attempt reports as saved.

    States are for the next attempt: one that cannot be stored is no harm as long as a later one can. What the job
    delivers is tried again and again for as long as the settings say.
    """

    def __init__(self, claim: Claim, lease: Lease, folder: Path, *, store: ObjectStore, settings: Settings) -> None:
        self._claim = claim
        self._lease = lease
        self._folder = folder
        self._store = store
        self._settings = settings
        self._left: dict[str, reported.Saved] = {}
        """Of each kind, the state that could not be stored."""

    def take(self, saved: reported.Saved) -> None:
        """Store a file and make it real. Raises StorageUnavailable, Postponed, LeaseLost."""
        if saved.kind in ("checkpoint", "report"):
            self._publish(saved)
            return
        try:
            self._keep(saved)
        except StorageUnavailable as error:
            # One that the training has replaced by a newer one meanwhile is left out.
            if self._is_there(saved):
                self._leave_for_later(saved, error)
            else:
                remove(self._state_prefix(saved), self._store)

    def take_what_is_left(self) -> None:
        """Try once more to store the last states: after this, they are gone with this machine. Raises LeaseLost."""
        deadline = monotonic() + min(leases.PAUSE_GRACE_SECONDS, PUBLISH_SECONDS)
        for saved in list(self._left.values()):
            if not self._is_there(saved):
                # Of no use by now: the evaluation that it is of is over.
                continue
            for pause in _tries(deadline):
                try:
                    self._keep(saved)
                except StorageUnavailable as error:
                    log.warning("job %s: its %s cannot be stored now: %s", self._claim.job_id, saved.kind, error)
                    sleep(pause)
                else:
                    break

    def _publish(self, saved: reported.Saved) -> None:
        deadline = monotonic() + PUBLISH_SECONDS
        failed: StorageUnavailable | None = None
        for pause in _tries(deadline):
            try:
                key = self._deliver(saved, f"{self._claim.prefix}/{Path(saved.path).name}")
            except StorageUnavailable as error:
                log.warning("job %s: its %s cannot be stored now: %s", self._claim.job_id, saved.kind, error)
                if failed is None:
                    self._warn("storage_unavailable", f"the {saved.kind} cannot be stored yet: {error}")
                failed = error
                if self._lease.ending.wait(pause):
                    raise Postponed from error
            else:
                self._lease.write(partial(ingest.save, claim=self._claim, saved=saved, key=key))
                return
        assert failed
        raise failed

    def _keep(self, saved: reported.Saved) -> None:
        name = Path(saved.path).name
        key = self._deliver(saved, f"{self._state_prefix(saved)}/{name}")
        change = partial(ingest.save_state, claim=self._claim, saved=saved, name=name, key=key)
        outdated = self._lease.write(change)
        self._left.pop(saved.kind, None)
        discard(outdated, self._store)

    def _state_prefix(self, saved: reported.Saved) -> str:
        return f"{self._claim.prefix}/{_STATES}/{saved.kind}-{saved.step}"

    def _is_there(self, saved: reported.Saved) -> bool:
        with suppress(FileNotFoundError), (self._folder / Path(saved.path).name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == saved.sha256
        return False

    def _leave_for_later(self, saved: reported.Saved, error: StorageUnavailable) -> None:
        log.warning("job %s: its %s cannot be stored now: %s", self._claim.job_id, saved.kind, error)
        if saved.kind not in self._left:
            self._warn("state_not_stored", f"the {saved.kind} of step {saved.step} cannot be stored: {error}")
        self._left[saved.kind] = saved

    def _warn(self, code: str, message: str) -> None:
        warning = reported.Warned(code=code, message=message)
        self._lease.write(partial(ingest.record, claim=self._claim, events=[warning]))

    def _deliver(self, saved: reported.Saved, key: str) -> str:
        """Put a file into the object store and see that it has arrived; give its key. Raises StorageUnavailable."""
        path = self._folder / Path(saved.path).name
        for place in (key, *_other_keys(key)):
            # The key may be taken by an earlier try, which was cut off after it had arrived.
            with suppress(FileExistsError):
                self._store.put(place, path)
            if _hash_of(self._store.read(place)) == saved.sha256:
                return place
            if not self._is_there(saved):
                break
        raise StorageUnavailable(f"{key}: what arrived is not what was sent")


def fetch_states(
    folder: Path, claim: Claim, states: Sequence[State], lease: Lease, store: ObjectStore
) -> Iterator[reported.Warned]:
    """Put the newest whole state and its companions into the folder; report what could not be had. Raises Postponed.

    states: what there is, the newest first.
    """
    place = _Place(folder, claim, lease, store)
    # What an evaluation has found stands for itself; the best weights are of the state's step, or of one before it.
    yield from place.fetch_first(state for state in states if state.kind == "verdicts")
    found = yield from place.fetch_first(state for state in states if state.kind == "state")
    if found:
        yield from place.fetch_first(state for state in states if state.kind == "best" and state.step <= found.step)


@dataclass(frozen=True)
class _Place:
    """Where states go, and where they come from."""

    folder: Path
    claim: Claim
    lease: Lease
    store: ObjectStore

    def fetch_first(self, states: Iterable[State]) -> Generator[reported.Warned, None, State | None]:
        """Fetch the first of these that can be had, and say which that is. Raises Postponed."""
        for state in states:
            path = self.folder / state.name
            try:
                _fetch(state, path, self.lease, self.store)
            except StorageUnavailable as error:
                path.unlink(missing_ok=True)
                yield reported.Warned(
                    code="state_unavailable",
                    message=f"the {state.kind} of step {state.step} is passed over for the one before it, if any: "
                    f"{error}",
                )
            else:
                job, attempt = self.claim.job_id, self.claim.attempt
                log.info("job %s: attempt %d has the %s of step %d", job, attempt, state.kind, state.step)
                return state
        return None


def discard(keys: Iterable[str], store: ObjectStore) -> None:
    """Remove states that are no longer needed, with the folders that each has for itself."""
    for key in keys:
        remove(key.rpartition("/")[0], store)


def remove(prefix: str, store: ObjectStore) -> None:
    """Remove all objects under a key; where that fails, they are swept later."""
    try:
        store.delete(prefix)
    except StorageUnavailable as error:
        log.warning("what is no longer needed stays in the object store for now: %s", error)


def remove_states(claim: Claim, store: ObjectStore) -> None:
    """Remove all states of all the job's attempts."""
    for attempt in range(1, claim.attempt + 1):
        remove(f"{attempt_prefix(claim.job_id, attempt)}/{_STATES}", store)


def _fetch(state: State, path: Path, lease: Lease, store: ObjectStore) -> None:
    """Copy a state into a file. Raises StorageUnavailable, also when it is damaged, and Postponed."""
    with path.open("wb") as file:
        for chunk in whole(state.key, state.sha256, store):
            go_on(lease.ending)
            file.write(chunk)


def _tries(deadline: float) -> Iterator[float]:
    """Try at least once and until the deadline; give how long to pause before the next try."""
    pause = 0.1
    while True:
        left = deadline - monotonic()
        yield max(0.0, min(pause, left))
        if left <= 0:
            return
        pause = min(2 * pause, _LONGEST_PAUSE)


def _other_keys(key: str) -> Iterator[str]:
    folder, _, name = key.rpartition("/")
    return (f"{folder}/again-{number}/{name}" for number in (1, 2))


def _hash_of(chunks: Iterable[bytes]) -> str:
    arrived = hashlib.sha256()
    for chunk in chunks:
        arrived.update(chunk)
    return arrived.hexdigest()
