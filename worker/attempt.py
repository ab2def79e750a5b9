"""Run one claimed job: start its training process, store what it reports and delivers, record how the attempt ended.

`run` is a plain function that needs only a claim: the polling loop of `worker.polling` calls it.
"""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.assets.registry import Registry
from app.jobs import claims, ingest, shards
from app.jobs.claims import RetryPolicy
from app.jobs.failures import describe
from app.jobs.leases import Claim, LeaseLost
from app.platform.database import AWAY
from app.schemas import Failure
from app.storage import StorageFull, StorageUnavailable
from core.schema import events as reported
from core.schema.exit_status import ExitStatus
from core.schema.report import Reports
from worker.failures import job_failure
from worker.files import downloads
from worker.files.log_uploader import LogUploader
from worker.files.transfer import (
    Delivery,
    InputUnavailable,
    discard_all_states,
    discard_states,
    fetch_shard_reports,
    fetch_states,
    fetched_inputs,
    read_report,
)
from worker.files.work_folder import keep_results, remove_expired_results, work_folder
from worker.host import count_gpus, count_oom_kills
from worker.lease import Crashed, HandedBack, JobLease, StopRequested
from worker.processes.training_process import TrainingProcess, gpus_wanted
from worker.workplace import Workplace

log = logging.getLogger(__name__)

STALL_SECONDS = 1800.0
"""Time without an event or a changed file after which a training process is killed and started again."""
KEPT_DAYS = 7
"""Days for which a worker keeps results that the object store did not take."""


@dataclass(frozen=True)
class Succeeded:
    """The training process has finished and all its files are stored."""

    reports: Reports


@dataclass(frozen=True)
class Failed:
    """The job cannot be done."""

    failure: Failure


Ending = Succeeded | Failed | HandedBack | Crashed
"""How an attempt ends, before it is written into the job's row."""


def run(claim: Claim, workplace: Workplace) -> None:
    """Run a claimed job until it ends or its lease is lost. Every failure of the job or the machine ends in its row."""
    log.info("job %s: attempt %d begins", claim.job_id, claim.attempt)
    remove_expired_results(workplace.settings.kept_dir, days=KEPT_DAYS)
    try:
        with (
            work_folder(workplace.settings.work_dir, claim.job_id, claim.attempt) as folder,
            JobLease(claim, workplace) as lease,
            LogUploader(folder, lease) as logs,
        ):
            Attempt(folder, lease, logs).run()
    except LeaseLost:
        log.warning("job %s: attempt %d has lost its lease", claim.job_id, claim.attempt)
    except OSError as error:
        happened = "disk_full" if error.errno in (ENOSPC, EDQUOT) else "not_started"
        with suppress(LeaseLost), workplace.database.writing() as session:
            claims.fail(session, claim, job_failure(happened, error=error))


class Attempt:
    """One worker's try at a job, with its work folder, its lease and its log."""

    def __init__(self, folder: Path, lease: JobLease, logs: LogUploader) -> None:
        self.folder = folder
        self.lease = lease
        self.logs = logs
        self.claim = lease.claim
        self.workplace = lease.workplace

    def run(self) -> None:
        """Run the job and write its ending into its row. Raises LeaseLost, and OSError when the disk fails."""
        # The claim's spec has no webhook: its address must not get into checkpoints.
        (self.folder / "spec.json").write_text(self.claim.spec.model_dump_json())
        self._settle_parent()
        ending = self._find_delivered() or self._check_gpus() or self._work()
        self.logs.store(everything=True)
        self.lease.write(partial(self._record, ending=ending))
        self._discard_states()
        self._settle_parent()
        log.info("job %s: attempt %d has ended", self.claim.job_id, self.claim.attempt)

    def _work(self) -> Ending:
        """Fetch the files that the job needs, run its training process and deliver its files."""
        try:
            with self._inputs() as registry:
                if failure := self._download(registry):
                    return Failed(failure)
                fetch_states(self.folder, self.lease, self.logs)
                return self._train(registry)
        except InputUnavailable as error:
            return Failed(error.failure)
        except StorageUnavailable as error:
            self.logs.note(f"the files cannot be stored: {error}")
            return Failed(self._not_stored(error))
        except StopRequested:
            self.logs.note("the attempt was asked to end before its files were stored")
            return HandedBack()

    def _download(self, registry: Registry) -> Failure | None:
        """Download the data set where it is missing; return why that failed. Raises StopRequested, LeaseLost."""
        spec = self.claim.spec
        if self.claim.merges or not downloads.is_missing(spec, registry):
            return None
        self.logs.note(f"downloading {spec.dataset}")
        return downloads.download(spec.dataset, self.folder, self.logs.path, self.lease)

    def _train(self, registry: Registry) -> Ending:
        """Run the training process to its end. Raises StorageUnavailable, StopRequested, LeaseLost."""
        oom_kills = count_oom_kills()
        delivery = Delivery(self.folder, self.lease)
        command = self.workplace.command(self.claim, self.folder, registry)
        with TrainingProcess(
            command,
            self.folder,
            log=self.logs.path,
            torchrun=gpus_wanted(self.claim) > 1,
            stall_seconds=STALL_SECONDS,
        ) as process:
            self.lease.watch(process)
            last = None
            for batch in process.batches():
                self._record_events(batch)
                last = batch[-1]
                if isinstance(last, reported.Saved):
                    delivery.deliver(last)
            if not isinstance(last, reported.Finished):
                delivery.store_unstored_states()
            ending = self._ending(last, process, oom_kills)
        self.logs.note(f"the training process has ended with exit code {process.exit_code}{self.lease.why}")
        return ending

    def _ending(self, last: reported.Event | None, process: TrainingProcess, oom_kills: int | None) -> Ending:
        """Tell from the last event and the exit code how the attempt has ended.

        oom_kills: the kernel's count of memory kills from before the process was started.
        """
        if isinstance(last, reported.Finished):
            return Succeeded(last.reports)
        if isinstance(last, reported.Failed):
            return Failed(Failure(**last.model_dump(exclude={"type"})))
        exit_code = process.exit_code
        # With several processes the exit code is torchrun's, which does not know of pauses.
        if self.lease.ending.is_set() or exit_code == ExitStatus.PAUSED or isinstance(last, reported.Paused):
            return HandedBack()
        if self.lease.killed or process.was_killed_from_outside:
            if self.lease.killed:
                return Crashed("stalled", f"({self.lease.killed})")
            if oom_kills is not None and (count_oom_kills() or 0) > oom_kills:
                return Crashed("host_out_of_memory")
            return Crashed("killed", f"by {process.describe_exit()}")
        log.warning("job %s: the training process ended with exit code %d and no event", self.claim.job_id, exit_code)
        return Failed(job_failure("exited", exit=f"exit code {exit_code}", stderr=process.read_stderr_tail()))

    def _record(self, session: Session, *, ending: Ending) -> None:
        """Write the ending into the job's row. A job that is being cancelled ends cancelled, whatever the ending."""
        match ending:
            case Succeeded(reports):
                claims.succeed(session, self.claim, reports)
            case Failed(failure):
                claims.fail(session, self.claim, failure)
            case HandedBack():
                claims.hand_back(session, self.claim)
            case Crashed(code, detail):
                cause = describe(code, detail)
                log.warning("job %s: attempt %d crashed: %s", self.claim.job_id, self.claim.attempt, cause)
                retry_policy = RetryPolicy.of(self.workplace.settings)
                claims.record_crash(session, self.claim, code, detail, retry_policy=retry_policy)

    def _record_events(self, events: list[reported.Event]) -> None:
        self.lease.write(partial(ingest.record, claim=self.claim, events=events))
        if any(isinstance(event, reported.Started) for event in events):
            self.lease.started.set()
        if any(isinstance(event, reported.Attacked) for event in events):
            self._settle_parent()

    def _find_delivered(self) -> Ending | None:
        """Succeed at once when an earlier attempt has delivered all its files before it was lost."""
        delivered = self.lease.write(partial(ingest.published, claim=self.claim))
        if delivered is None:
            return None
        try:
            reports = read_report(*delivered, self.workplace.store)
        except (StorageUnavailable, ValidationError) as error:
            # The job is run again, which makes a new report.
            log.warning("job %s: the delivered report %s cannot be read: %s", self.claim.job_id, delivered[0], error)
            return None
        log.info("job %s: an earlier attempt has delivered all its files", self.claim.job_id)
        return Succeeded(reports)

    def _check_gpus(self) -> Ending | None:
        """Fail at once when this machine has fewer GPUs than the job asks for."""
        wanted, present = gpus_wanted(self.claim), count_gpus()
        if 1 < wanted > present:
            values = {"wanted": wanted, "present": present, "possible": max(present, 1)}
            return Failed(job_failure("too_few_gpus", field="gpus", **values))
        return None

    @contextmanager
    def _inputs(self) -> Iterator[Registry]:
        """Have the files that the job reads on this machine. Raises InputUnavailable, StopRequested, LeaseLost."""
        if self.claim.merges:
            fetch_shard_reports(self.folder, self.lease)
            yield self.workplace.registry
        else:
            with fetched_inputs(self.folder, self.lease) as registry:
                yield registry

    def _not_stored(self, error: StorageUnavailable) -> Failure:
        """Keep the results on this machine, and say where."""
        kept = self._keep_results(error)
        if kept:
            self.logs.note(kept)
        return job_failure("store_full" if isinstance(error, StorageFull) else "not_stored", error=error, kept=kept)

    def _keep_results(self, error: StorageUnavailable) -> str:
        """Keep the results on this machine; return a sentence that says where, or an empty string."""
        settings, claim = self.workplace.settings, self.claim
        if isinstance(error, StorageFull) and settings.s3_bucket is None:
            # The local store is on the same disk, which is full.
            return ""
        try:
            kept = keep_results(self.folder, settings.kept_dir, f"{claim.job_id}-{claim.attempt}")
        except OSError as failed:
            log.warning("job %s: its results cannot be kept: %s", claim.job_id, failed)
            return ""
        if kept is None:
            return ""
        where = f"{kept.relative_to(settings.data_dir)} in the data folder of the worker on {socket.gethostname()}"
        return f"Its results are kept for {KEPT_DAYS} days as {where}."

    def _discard_states(self) -> None:
        """Remove the states of a job that has succeeded, including those of its shards and of its lost attempts."""
        with self.workplace.database.writing() as session:
            keys = ingest.forget_states(session, self.claim)
        discard_states(keys, self.workplace.store)
        if keys:
            discard_all_states(self.claim, self.workplace.store)

    def _settle_parent(self) -> None:
        """Update the job that a shard is part of at once; where that fails, maintenance does it later."""
        if self.claim.shard:
            with suppress(*AWAY), self.workplace.database.writing() as session:
                shards.update_parents(session, self.claim.shard.of)
