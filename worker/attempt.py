"""Run one claimed job: start the training process, store what it reports, deliver its files, write how it ended.

`run` is a plain function that anything may call with a claim: the polling loop of `worker.polling`, or a task queue.
"""

import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Event

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.assets import inputs
from app.assets.registry import Registry
from app.jobs import claims, ingest, shards
from app.jobs.claims import RetryPolicy
from app.jobs.failures import CrashCode, describe
from app.jobs.leases import Claim, LeaseLost
from app.platform.database import AWAY, Database
from app.platform.settings import Settings
from app.schemas import Failure
from app.storage import ObjectStore, StorageFull, StorageUnavailable
from core.schema import events as reported
from worker import failures
from worker.cache import Cache
from worker.delivery import Delivery, discard, fetch_states, remove_states
from worker.failures import NotFetched
from worker.fetching import Postponed, whole
from worker.folder import work_folder
from worker.gathering import gather, report_of
from worker.inputs import fetched
from worker.keeping import keep, sweep
from worker.lease import Lease
from worker.log_uploader import Logbook
from worker.machine import count_gpus, count_oom_kills
from worker.pulse import Pulse
from worker.training_process import Trainer
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)

Ending = Callable[[Session], None]
"""Writes into the row how an attempt has ended."""
# The kernel's own way to say it, and Python's and the shell's.
_KILLED_FROM_OUTSIDE = {-signal.SIGKILL, 128 + signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}


def core_command(claim: Claim, folder: Path, registry: Registry) -> list[str]:
    """Write the command of the training process; its spec lies in the work folder, and the reports that it is to merge
    where `worker.gathering` has put them."""
    to_the_end = ["--json", "--output", str(folder), "--until-stdin-closes"]
    if claim.merges:
        reports = [str(report_of(folder, number)) for number in range(1, claim.merges + 1)]
        return [sys.executable, "-m", "core", "merge", *reports, *to_the_end]
    paths = {
        "--weights": registry.weights(claim.spec),
        "--data": registry.data(claim.spec),
        "--extra-data": registry.extra_data(claim.spec),
    }
    given = [part for option, path in paths.items() if path for part in (option, str(path))]
    # What was inspected has its bad images in the report, and a run must see what the report counts.
    if registry.fetched.keys() & {"dataset", "extra_dataset"}:
        given.append("--leave-out-unusable")
    spec = str(folder / "spec.json")
    gpus = getattr(claim.spec, "gpus", 1)
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus), "-m"] if gpus > 1 else []
    if claim.shard:
        given += ["--shard", f"{claim.shard.number}/{claim.shard.count}"]
    return [sys.executable, "-m", *together, "core", claim.spec.kind, spec, *given, *to_the_end]


@dataclass(frozen=True)
class Workplace:
    """What a worker has at hand."""

    settings: Settings
    database: Database
    store: ObjectStore
    registry: Registry
    command: Callable[[Claim, Path, Registry], Sequence[str]] = core_command
    """Writes the command of the training process."""
    stopping: Event = field(default_factory=Event)
    """Set when this worker is to hand its jobs back."""

    @cached_property
    def pulse(self) -> Pulse:
        """The sign of life of this worker."""
        return Pulse(self.settings.pulse_file)


def run(claim: Claim, place: Workplace) -> None:
    """Run a claimed job to its end, or until it is another worker's. What can befall a run ends in its row."""
    log.info("job %s: attempt %d begins", claim.job_id, claim.attempt)
    sweep(place.settings.kept_dir, days=place.settings.kept_days)
    try:
        with (
            work_folder(place.settings.work_dir, claim.job_id, claim.attempt) as folder,
            Lease(
                claim, database=place.database, settings=place.settings, stopping=place.stopping, pulse=place.pulse
            ) as lease,
        ):
            # Whom the service tells is not the run's business, and no checkpoint is to name the address.
            (folder / "spec.json").write_text(claim.spec.model_dump_json(exclude={"webhook"}))
            _tell_the_whole(claim, place)
            ending = _find_ending(lease, claim, place)
            if ending is None:
                with Logbook(claim, lease, folder, store=place.store, settings=place.settings) as logbook:
                    ending = _run_in(folder, lease, logbook, claim, place)
                    logbook.store(whole=True)
            lease.write(ending)
    except LeaseLost:
        log.warning("job %s: attempt %d is no longer ours", claim.job_id, claim.attempt)
    except OSError as error:
        with suppress(LeaseLost), place.database.writing() as session:
            claims.fail(session, claim, failures.not_started(error))
    else:
        _discard_states(claim, place)
        _tell_the_whole(claim, place)
        log.info("job %s: attempt %d is over", claim.job_id, claim.attempt)


def _tell_the_whole(claim: Claim, place: Workplace) -> None:
    """Let the job that a shard is a part of follow it at once; where that fails, it does so later."""
    if claim.shard:
        with suppress(*AWAY), place.database.writing() as session:
            shards.update_parents(session, claim.shard.of)


def _find_ending(lease: Lease, claim: Claim, place: Workplace) -> Ending | None:
    """See whether an earlier attempt has delivered everything before it was lost, or the machine is not up to it."""
    found = lease.write(partial(ingest.published, claim=claim))
    if found and (reports := _read_report(*found, place.store)):
        log.info("job %s: an earlier attempt has delivered all of it", claim.job_id)
        return partial(claims.succeed, claim=claim, reports=reports)
    wanted, there = getattr(claim.spec, "gpus", 1), count_gpus()
    if wanted > 1 and wanted > there:
        return partial(claims.fail, claim=claim, failure=failures.too_few_gpus(wanted, there))
    return None


def _read_report(key: str, sha256: str, store: ObjectStore) -> reported.Reports | None:
    """Read a report; None where it cannot be had, for then it is made anew."""
    try:
        return reported.Reports.model_validate_json(b"".join(whole(key, sha256, store)))
    except (StorageUnavailable, ValidationError) as error:
        log.warning("the report %s cannot be read: %s", key, error)
    return None


def _run_in(folder: Path, lease: Lease, logbook: Logbook, claim: Claim, place: Workplace) -> Ending:
    """Run the training process and deliver its files; choose how the row learns of the end."""
    try:
        if claim.merges:
            gather(folder, lease, claim, place.store)
            return _run_on(place.registry, folder, lease, logbook, claim, place)
        with _fetched(folder, lease, claim, place) as registry:
            return _run_on(registry, folder, lease, logbook, claim, place)
    except NotFetched as error:
        return partial(claims.fail, claim=claim, failure=error.failure)
    except StorageUnavailable as error:
        logbook.note(f"the files cannot be stored: {error}")
        kept = _keep(folder, error, claim, place.settings)
        if kept:
            logbook.note(kept)
        return partial(claims.fail, claim=claim, failure=failures.not_stored(error, kept))
    except Postponed:
        logbook.note("the attempt was asked to end before its files were stored")
        return partial(claims.hand_back, claim=claim)


@contextmanager
def _fetched(folder: Path, lease: Lease, claim: Claim, place: Workplace) -> Iterator[Registry]:
    """Have what the job takes in of its project's own. Raises NotFetched, LeaseLost, Postponed."""
    try:
        sources = lease.write(partial(inputs.sources, job_id=claim.root_job_id, spec=claim.spec))
    except inputs.Gone as error:
        raise NotFetched(failures.gone(error)) from error
    cache = Cache(place.settings.cache_dir, place.settings.cache_bytes)
    with fetched(sources, folder, place.registry, cache=cache, store=place.store, ending=lease.ending) as registry:
        yield registry


def _run_on(registry: Registry, folder: Path, lease: Lease, logbook: Logbook, claim: Claim, place: Workplace) -> Ending:
    """Run it on these files. Raises StorageUnavailable, Postponed, LeaseLost."""
    logbook.note(f"attempt {claim.attempt} begins")
    _begin_with_states(folder, lease, logbook, claim, place)
    command = place.command(claim, folder, registry)
    launches = getattr(claim.spec, "gpus", 1) > 1
    killed_before = count_oom_kills()
    with Trainer(command, log=logbook.path, launches=launches) as trainer:
        watchdog = Watchdog(folder, stall_seconds=place.settings.stall_seconds)
        lease.watch_over(trainer, watchdog)
        delivery = Delivery(claim, lease, folder, store=place.store, settings=place.settings)
        last = _follow(trainer, watchdog, lease, claim, delivery, place)
        if not isinstance(last, reported.Finished):
            delivery.take_what_is_left()
        ending = _ending(last, trainer, lease, claim, place, killed_before=killed_before)
        logbook.note(f"the training process has ended with exit code {trainer.wait()}{lease.why}")
        return ending


def _begin_with_states(folder: Path, lease: Lease, logbook: Logbook, claim: Claim, place: Workplace) -> None:
    """Put the files that an earlier attempt has left for this one into its folder, as far as they can be had."""
    states = lease.write(partial(ingest.states, claim=claim))
    for warning in fetch_states(folder, claim, states, lease, place.store):
        log.warning("job %s: %s", claim.job_id, warning.message)
        logbook.note(warning.message)
        lease.write(partial(ingest.record, claim=claim, events=[warning]))


def _follow(
    trainer: Trainer, watchdog: Watchdog, lease: Lease, claim: Claim, delivery: Delivery, place: Workplace
) -> reported.Event | None:
    """Store everything that the process reports, and give the last of it."""
    last = None
    for batch in trainer.batches():
        watchdog.see(batch)
        lease.write(partial(ingest.record, claim=claim, events=batch))
        if any(isinstance(event, reported.Started) for event in batch):
            lease.started.set()
        if any(isinstance(event, reported.Attacked) for event in batch):
            _tell_the_whole(claim, place)
        last = batch[-1]
        if isinstance(last, reported.Saved):
            delivery.take(last)
    return last


def _discard_states(claim: Claim, place: Workplace) -> None:
    """Remove the states of a job that has succeeded, those of its shards and of its lost attempts included."""
    with place.database.writing() as session:
        keys = ingest.forget_states(session, claim)
    discard(keys, place.store)
    if keys:
        remove_states(claim, place.store)


def _ending(
    last: reported.Event | None,
    trainer: Trainer,
    lease: Lease,
    claim: Claim,
    place: Workplace,
    *,
    killed_before: int | None,
) -> Ending:
    """Read off the last event and the exit code how the run has ended. A job that is being cancelled ends cancelled by
    any of these. killed_before: the kernel's count of what it has killed for want of memory, before the run."""
    if isinstance(last, reported.Finished):
        return partial(claims.succeed, claim=claim, reports=last.reports)
    if isinstance(last, reported.Failed):
        return partial(claims.fail, claim=claim, failure=Failure(**last.model_dump(exclude={"type"})))
    exit_code = trainer.wait()
    # Of several processes the exit code is torchrun's, which knows nothing of a pause.
    if lease.ending.is_set() or exit_code == reported.PAUSED or isinstance(last, reported.Paused):
        return partial(claims.hand_back, claim=claim)
    if lease.killed or exit_code in _KILLED_FROM_OUTSIDE:
        starved = not lease.killed and killed_before is not None and (count_oom_kills() or 0) > killed_before
        code: CrashCode = "host_out_of_memory" if starved else "stalled" if lease.killed else "killed"
        detail = "" if starved else f"({lease.killed})" if lease.killed else _name(exit_code)
        log.warning("job %s: attempt %d is lost: %s", claim.job_id, claim.attempt, describe(code, detail))
        policy = RetryPolicy.of(place.settings)
        return partial(claims.record_crash, claim=claim, code=code, detail=detail, retry_policy=policy)
    log.warning("job %s: the training process ended with exit code %d and no reason", claim.job_id, exit_code)
    return partial(claims.fail, claim=claim, failure=failures.crashed(exit_code, trainer.last_words()))


def _name(exit_code: int) -> str:
    """Name the signal of an exit code, which is negative where Python tells it and above 128 where a shell does."""
    return f"by {signal.Signals(abs(exit_code) % 128).name}"


def _keep(folder: Path, error: StorageUnavailable, claim: Claim, settings: Settings) -> str:
    """Keep what the run has made; say where, in words that follow others, or nothing."""
    if not settings.kept_days or (isinstance(error, StorageFull) and settings.s3_bucket is None):
        # There it would take the very room that is missing.
        return ""
    try:
        kept = keep(folder, settings.kept_dir, f"{claim.job_id}-{claim.attempt}")
    except OSError as failed:
        log.warning("job %s: what it has made cannot be kept: %s", claim.job_id, failed)
        return ""
    if kept is None:
        return ""
    place = f"{kept.relative_to(settings.data_dir)} in the data folder of the worker on {socket.gethostname()}"
    return f"What it has made is kept for {settings.kept_days:g} days as {place}."
