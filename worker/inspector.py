"""Inspect one uploaded file: fetch it, have `python -m core inspect-...` open it, store the result.

The process that opens the file has no credentials, limits of its own, no network and no other file. It is killed when
this process ends, when the lease is lost, and when it takes too long.
"""

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.assets import inspections
from app.assets.inspections import Inspection
from app.jobs.leases import LeaseLost
from app.schemas import AssetFailure
from app.storage import StorageFull, StorageUnavailable
from core.schema import events as reported
from core.schema import inspection_report
from core.schema.inspection_report import DatasetInspection, ModelInspection
from worker.failures import asset_failure
from worker.files.cache import Cache
from worker.files.work_folder import work_folder
from worker.lease import HandedBack, Lease, StopRequested
from worker.processes.child_process import ChildProcess
from worker.processes.confined import confined
from worker.workplace import Workplace

log = logging.getLogger(__name__)

MODEL = "model.safetensors"
"""Name of the checkpoint that the inspection of a model writes."""
INSPECTION_MEMORY_BYTES = 4 * 1024**3
"""Memory that the process of an inspection may use."""
# A process over its limits ends itself; this is for one that cannot.
_GRACE_SECONDS = 30
_WAIT_SECONDS = 0.2
_MAX_REPORT_BYTES = 64 * 2**20
_MAX_OUTPUT_BYTES = 65536


@dataclass(frozen=True)
class Accepted:
    """The file is usable; its content and its report are in the object store."""

    findings: DatasetInspection | ModelInspection
    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Refused:
    """Jobs cannot use the file."""

    failure: AssetFailure


@dataclass(frozen=True)
class Unfinished:
    """The process was killed, or the file not fetched: the inspection is repeated a limited number of times."""

    cause: str


Ending = Accepted | Refused | HandedBack | Unfinished
"""How an inspection ends, before it is written into the file's row."""


def inspect_next(workplace: Workplace) -> bool:
    """Inspect the next file that waits; False when none does. Every failure ends in the file's row."""
    with workplace.database.writing() as session:
        inspection = inspections.claim(
            session,
            worker=workplace.description.name,
            lease_seconds=workplace.settings.lease_seconds,
            max_crashes=workplace.settings.max_crashes,
        )
    if inspection is None:
        return False
    name = f"{inspection.kind} {inspection.id}: inspection {inspection.attempt}"
    log.info("%s begins", name)
    try:
        with InspectionLease(inspection, workplace) as lease:
            Inspector(inspection, lease).run()
    except LeaseLost:
        log.warning("%s has lost its lease", name)
    log.info("%s has ended", name)
    return True


class InspectionLease(Lease):
    """The lease on a file that is being inspected."""

    def __init__(self, inspection: Inspection, workplace: Workplace) -> None:
        super().__init__(f"{inspection.kind} {inspection.id}", workplace)
        self._inspection = inspection

    def _contact(self, *, renews: bool) -> None:
        if renews:
            with self.workplace.database.writing() as session:
                inspections.renew(session, self._inspection, lease_seconds=self._settings.lease_seconds)


class Inspector:
    """One worker's try at inspecting a file."""

    def __init__(self, inspection: Inspection, lease: Lease) -> None:
        self.inspection = inspection
        self.lease = lease
        self.workplace = lease.workplace

    def run(self) -> None:
        """Inspect the file and write the ending into its row. Raises LeaseLost."""
        self.lease.write(partial(self._record, ending=self._work()))

    def _work(self) -> Ending:
        """Fetch the file, open it in a child process and store the result."""
        inspection, settings = self.inspection, self.workplace.settings
        cache = Cache(settings.cache_dir, settings.cache_bytes)
        fetched = partial(cache.hold, inspection.key, inspection.sha256, inspection.size, self.workplace.store)
        try:
            with (
                work_folder(settings.work_dir, inspection.id, inspection.attempt) as folder,
                fetched(check=self.lease.check) as source,
            ):
                # Only the suffix of the user's filename is used: it tells the format.
                file = folder / f"upload{_suffix(inspection.filename)}"
                file.symlink_to(source)
                found = self._open(file, folder)
                if isinstance(found, Refused | Unfinished):
                    return found
                return self._deliver(found, folder / "out")
        except StopRequested:
            return HandedBack()
        except StorageFull as error:
            log.warning("%s %s: %s", inspection.kind, inspection.id, error)
            return Refused(asset_failure("inspection_store_full"))
        except (StorageUnavailable, OSError) as error:
            log.warning("%s %s: %s", inspection.kind, inspection.id, error)
            self.lease.ending.wait(settings.poll_seconds)
            return Unfinished(str(error))

    def _open(self, file: Path, folder: Path) -> DatasetInspection | ModelInspection | Refused | Unfinished:
        """Run the process that opens the file, and read its report. Raises StopRequested."""
        settings = self.workplace.settings
        deadline = monotonic() + settings.inspection_seconds + _GRACE_SECONDS
        output = folder / "stdout"
        arguments = command(self.inspection, file, folder, self.workplace)
        with ChildProcess(arguments, stdout=output, stderr=folder / "stderr", untrusted=True) as process:
            while process.wait(min(settings.poll_seconds, _WAIT_SECONDS)) is None:
                self.lease.check()
                if monotonic() > deadline:
                    return Refused(asset_failure("inspection_late"))
        self._log_warnings(output)
        if process.exit_code == 0:
            return self._read_report(folder / "out" / inspections.REPORT)
        if process.was_killed_from_outside:
            return Unfinished(f"its process was killed by {process.describe_exit()}")
        return Refused(self._failure(output, process))

    def _read_report(self, path: Path) -> DatasetInspection | ModelInspection | Refused:
        """Read the report without trusting it: a malicious file may have taken the process over."""
        try:
            if path.is_symlink() or path.stat().st_size > _MAX_REPORT_BYTES:
                return _crashed("its report is a link or too large")
            found = inspection_report.read(path.read_bytes())
        except (OSError, ValidationError):
            return _crashed("its report cannot be read")
        source = found.sha256 if isinstance(found, DatasetInspection) else found.source_sha256
        if found.kind != self.inspection.kind or source != self.inspection.sha256:
            return _crashed("its report is about another file")
        return found

    def _log_warnings(self, output: Path) -> None:
        with output.open("rb") as file:
            for line in file.read(_MAX_OUTPUT_BYTES).splitlines():
                with suppress(ValidationError):
                    event = reported.read(line)
                    if isinstance(event, reported.Warned):
                        log.warning("%s %s: %s", self.inspection.kind, self.inspection.id, event.message[:500])

    def _failure(self, output: Path, process: ChildProcess) -> AssetFailure:
        """Read the failure that the process has reported last, or tell how it ended without one."""
        last = output.read_bytes()[-_MAX_OUTPUT_BYTES:].splitlines()[-1:]
        with suppress(ValidationError):
            failed = reported.read(last[0]) if last else None
            if isinstance(failed, reported.Failed):
                return AssetFailure.model_validate(failed.model_dump(include={"code", "message", "hint", "field"}))
        log.warning("an inspection ended by %s: %s", process.describe_exit(), process.read_stderr_tail()[-500:])
        return asset_failure("inspection_crashed", reason=f"it was ended by {process.describe_exit()}")

    def _deliver(self, found: DatasetInspection | ModelInspection, out: Path) -> Accepted | Refused:
        """Store the report and the files that it names. Raises StorageUnavailable, StopRequested."""
        inspection = self.inspection
        made = [each.file for each in found.thumbnails] if isinstance(found, DatasetInspection) else [MODEL]
        for name in [inspections.REPORT, *made]:
            self.lease.check()
            path = out / name
            if not re.fullmatch(r"[a-z0-9-]+\.[a-z]+", name) or path.is_symlink() or not path.is_file():
                return _crashed("a file that its report names is missing")
            self.workplace.store.put(f"{inspection.prefix}/{name}", path)
        if isinstance(found, DatasetInspection):
            return Accepted(found, inspection.key, inspection.size, inspection.sha256)
        return Accepted(found, f"{inspection.prefix}/{MODEL}", (out / MODEL).stat().st_size, found.sha256)

    def _record(self, session: Session, *, ending: Ending) -> None:
        """Write the ending into the file's row. Raises LeaseLost."""
        held = self.inspection
        match ending:
            case Accepted(findings, key, size, sha256):
                inspections.accept(session, held, findings, key=key, size=size, sha256=sha256)
            case Refused(failure):
                inspections.refuse(session, held, failure)
            case HandedBack():
                inspections.hand_back(session, held)
            case Unfinished():
                inspections.record_crash(session, held, max_crashes=self.workplace.settings.max_crashes)


def command(inspection: Inspection, file: Path, folder: Path, workplace: Workplace) -> list[str]:
    """Return the command that opens the file and writes its results to the folder `out`."""
    settings = workplace.settings
    options: dict[str, object] = {
        "most-bytes": settings.inspection_bytes,
        "most-seconds": settings.inspection_seconds,
        "most-memory": INSPECTION_MEMORY_BYTES,
    }
    options |= _flat(inspection.declared.model_dump(mode="json", exclude_defaults=True))
    given = [f"--{name.replace('_', '-')}={_as_argument(value)}" for name, value in options.items()]
    fixed = ["--output", str(folder / "out"), "--json", "--until-stdin-closes"]
    return confined("core", f"inspect-{inspection.kind}", str(file), *fixed, *given, read=[file], write=folder)


def _flat(fields: Mapping[str, Any]) -> dict[str, object]:
    """Name the fields of objects with dots, as options do."""
    flat: dict[str, object] = {}
    for name, value in fields.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat |= {name: value} if inner is None else {f"{name}.{each}": given for each, given in inner.items()}
    return flat


def _as_argument(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _suffix(filename: str) -> str:
    match = re.search(r"\.[A-Za-z0-9]{1,16}$", filename)
    return match[0].lower() if match else ""


def _crashed(reason: str) -> Refused:
    return Refused(asset_failure("inspection_crashed", reason=reason))
