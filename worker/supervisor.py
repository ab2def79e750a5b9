"""Run one claimed job: start the training process, store what it reports, deliver its files, write how it ended.

`run` is a plain function that anything may call with a claim: the polling loop of `worker.embedded`, or a task queue.
"""

import errno
import hashlib
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from time import monotonic

from sqlalchemy.orm import Session

from app import jobs
from app.database import Database
from app.inventory import Inventory
from app.jobs import Claim, LostOwnership
from app.schemas import Failure
from app.settings import Settings
from app.storage import ObjectStore, StorageFull, StorageUnavailable
from core import events as reported
from worker.lease import Lease
from worker.pulse import Pulse
from worker.trainer import Trainer

log = logging.getLogger(__name__)

_STATES = "states"
"""Where, below an attempt's prefix, its states lie."""
# The kernel's own way to say it, and Python's and the shell's.
_KILLED_FROM_OUTSIDE = {-signal.SIGKILL, 128 + signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}


def core_command(claim: Claim, folder: Path, inventory: Inventory) -> list[str]:
    """Write the command of the training process; its spec lies in the work folder."""
    paths = {
        "--weights": inventory.weights(claim.spec),
        "--data": inventory.data(claim.spec),
        "--extra-data": inventory.extra_data(claim.spec),
    }
    given = [part for option, path in paths.items() if path for part in (option, str(path))]
    spec = str(folder / "spec.json")
    gpus = getattr(claim.spec, "gpus", 1)
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus), "-m"] if gpus > 1 else []
    options = ["--json", "--output", str(folder), *given, "--until-stdin-closes"]
    return [sys.executable, "-m", *together, "core", claim.spec.kind, spec, *options]


@dataclass(frozen=True)
class Workplace:
    """What a worker has at hand."""

    settings: Settings
    database: Database
    store: ObjectStore
    inventory: Inventory
    command: Callable[[Claim, Path, Inventory], Sequence[str]] = core_command
    """Writes the command of the training process."""
    stopping: Event = field(default_factory=Event)
    """Set when this worker is to hand its jobs back."""

    @cached_property
    def pulse(self) -> Pulse:
        """The sign of life of this worker."""
        return Pulse(self.settings.pulse_file)


def run(claim: Claim, place: Workplace) -> None:
    """Run a claimed job to its end, or until it is another worker's. What can befall a run ends in its row."""
    log.info("job %s: attempt %d begins", claim.job_id, claim.epoch)
    try:
        with _work_folder(claim, place) as folder:
            _fetch_states(folder, claim, place)
            _run_in(folder, claim, place)
    except LostOwnership:
        log.warning("job %s: attempt %d is no longer ours", claim.job_id, claim.epoch)
    except OSError as error:
        with place.database.writing() as session:
            jobs.fail(session, claim, _not_started(error))


@contextmanager
def _work_folder(claim: Claim, place: Workplace) -> Iterator[Path]:
    """Make a folder for this attempt; what an earlier one has left on this machine goes away."""
    of_job = place.settings.work_dir / claim.job_id
    shutil.rmtree(of_job, ignore_errors=True)
    folder = of_job / str(claim.epoch)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(claim.spec.model_dump_json())
    try:
        yield folder
    finally:
        shutil.rmtree(of_job, ignore_errors=True)


def _fetch_states(folder: Path, claim: Claim, place: Workplace) -> None:
    """Put the files that an earlier attempt has left for this one into its folder, as far as they can be had."""
    with place.database.reading() as session:
        states = jobs.states(session, claim)
    for state in states:
        path = folder / state.name
        try:
            _fetch(state.key, state.sha256, path, claim, place)
        except StorageUnavailable as error:
            log.warning("job %s: attempt %d begins without its %s: %s", claim.job_id, claim.epoch, state.kind, error)
            path.unlink(missing_ok=True)
        else:
            log.info("job %s: attempt %d goes on from step %d", claim.job_id, claim.epoch, state.step)


def _fetch(key: str, sha256: str, path: Path, claim: Claim, place: Workplace) -> None:
    """Copy an object into a file, keeping the lease meanwhile. Raises StorageUnavailable, also when it is damaged."""
    arrived, renewed_at = hashlib.sha256(), monotonic()
    with path.open("wb") as file:
        for chunk in place.store.read(key):
            arrived.update(chunk)
            file.write(chunk)
            if monotonic() - renewed_at > place.settings.heartbeat_seconds:
                renewed_at = monotonic()
                with place.database.writing() as session:
                    jobs.heartbeat(session, claim, lease_seconds=place.settings.lease_seconds)
    if arrived.hexdigest() != sha256:
        raise StorageUnavailable(f"{key}: it is not what was stored")


def _run_in(folder: Path, claim: Claim, place: Workplace) -> None:
    command = place.command(claim, folder, place.inventory)
    with (
        Trainer(command, log=folder / "stderr.log") as trainer,
        Lease(
            claim,
            trainer,
            database=place.database,
            settings=place.settings,
            stopping=place.stopping,
            pulse=place.pulse,
        ) as lease,
    ):
        try:
            last = _follow(trainer, lease, claim, place, folder)
        except StorageUnavailable as error:
            lease.write(partial(jobs.fail, claim=claim, failure=_not_stored(error)))
        else:
            lease.write(_ending(last, trainer, lease, claim, place))
    _discard_states(claim, place)
    log.info("job %s: attempt %d is over", claim.job_id, claim.epoch)


def _follow(trainer: Trainer, lease: Lease, claim: Claim, place: Workplace, folder: Path) -> reported.Event | None:
    """Store everything that the process reports, and give the last of it."""
    last = None
    for batch in trainer.batches():
        lease.write(partial(jobs.record, claim=claim, events=batch))
        last = batch[-1]
        if isinstance(last, reported.Saved):
            _store(last, lease, claim, place, folder)
    return last


def _store(saved: reported.Saved, lease: Lease, claim: Claim, place: Workplace, folder: Path) -> None:
    """Deliver a file and make it real; a state takes the place of the one before it. Raises StorageUnavailable.

    The training does not wait: a state that it has replaced by a newer one meanwhile is left out.
    """
    name = Path(saved.path).name
    if saved.kind in ("checkpoint", "report"):
        key = _deliver(saved, f"{claim.prefix}/{name}", place.store, folder)
        lease.write(partial(jobs.save, claim=claim, saved=saved, key=key))
        return
    key = f"{claim.prefix}/{_STATES}/{saved.kind}-{saved.step}/{name}"
    try:
        _deliver(saved, key, place.store, folder)
    except StorageUnavailable:
        if _is_there(folder / name, saved.sha256):
            raise
        _discard(key.rpartition("/")[0], place.store)
        return
    superseded = lease.write(partial(jobs.save_state, claim=claim, saved=saved, name=name, key=key))
    if superseded:
        _discard(superseded.rpartition("/")[0], place.store)


def _is_there(path: Path, sha256: str) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    return False


def _discard_states(claim: Claim, place: Workplace) -> None:
    """Remove the states of a job that has ended well or was given up, those of its lost attempts included."""
    with place.database.writing() as session:
        done = jobs.forget_states(session, claim)
    for epoch in range(1, claim.epoch + 1) if done else ():
        _discard(f"{replace(claim, epoch=epoch).prefix}/{_STATES}", place.store)


def _discard(prefix: str, store: ObjectStore) -> None:
    try:
        store.delete(prefix)
    except StorageUnavailable as error:
        log.warning("what is no longer needed stays in the object store: %s", error)


def _deliver(saved: reported.Saved, key: str, store: ObjectStore, folder: Path) -> str:
    """Put a file into the object store and see that it has arrived. Raises StorageUnavailable."""
    name = Path(saved.path).name
    store.put(key, folder / name)
    arrived = hashlib.sha256()
    for chunk in store.read(key):
        arrived.update(chunk)
    if arrived.hexdigest() != saved.sha256:
        raise StorageUnavailable(f"{key}: what arrived is not what was sent")
    return key


def _ending(
    last: reported.Event | None, trainer: Trainer, lease: Lease, claim: Claim, place: Workplace
) -> Callable[[Session], None]:
    """Choose how the row learns of the end. A job that is being cancelled ends cancelled by any of these."""
    if isinstance(last, reported.Finished):
        return partial(jobs.succeed, claim=claim, reports=last.reports)
    if isinstance(last, reported.Failed):
        return partial(jobs.fail, claim=claim, failure=Failure(**last.model_dump(exclude={"type"})))
    exit_code = trainer.wait()
    # Of several processes the exit code is torchrun's, which knows nothing of a pause.
    if lease.stopped or exit_code == reported.PAUSED or isinstance(last, reported.Paused):
        return partial(jobs.hand_back, claim=claim)
    if exit_code in _KILLED_FROM_OUTSIDE:
        return partial(jobs.lose, claim=claim, max_losses=place.settings.max_losses)
    return partial(jobs.fail, claim=claim, failure=_crashed(exit_code, trainer.last_words()))


def _crashed(exit_code: int, last_words: str) -> Failure:
    return Failure(
        code="internal_error",
        message=f"The training process ended with exit code {exit_code} and no reason. Its last words: {last_words}",
        hint="This is a mistake in Temper or in its installation: please report it with the last words.",
        field=None,
        retryable=False,
    )


def _not_stored(error: StorageUnavailable) -> Failure:
    full = isinstance(error, StorageFull)
    return Failure(
        code="disk_full" if full else "storage_unavailable",
        message=f"A file of the job could not be stored: {error}.",
        hint=f"{'Make room in' if full else 'Look after'} the object store, then post the job again.",
        field=None,
        retryable=True,
    )


def _not_started(error: OSError) -> Failure:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Failure(
        code="disk_full" if full else "internal_error",
        message=f"The worker could not start the run: {error}.",
        hint=f"{'Make room on' if full else 'Look after'} the worker's machine, then post the job again.",
        field=None,
        retryable=True,
    )
