"""Inspect one uploaded file: fetch it, have `python -m core inspect-...` open it, deliver what that makes of it.

The process that opens the file holds no credentials, has limits of its own and no way to the network, and is killed
when this one is gone, when the file is another worker's, or when it is not done in time.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.assets import inspections
from app.assets.inspections import Inspection
from app.platform.database import AWAY, why
from app.platform.leases import LeaseLost
from app.schemas import FileFailure
from app.storage import StorageFull, StorageUnavailable
from core.schema import events as reported
from core.schema import inspection_report
from core.schema.inspection_report import DatasetInspection, ModelInspection
from worker.attempt import Workplace
from worker.cache import Cache
from worker.folder import work_folder

log = logging.getLogger(__name__)

MODEL = "model.safetensors"
"""What an inspection calls the checkpoint that it makes."""
# Over its own limits it ends itself; this is for one that cannot.
_GRACE_SECONDS = 30
# The kernel's own way to say it, where the machine is short of memory or somebody stops the process.
_KILLED_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM}
_LARGEST_REPORT = 64 * 2**20


def inspect_next(place: Workplace) -> bool:
    """Inspect the next file that waits; False where none does. What can befall it ends in its row."""
    with place.database.writing() as session:
        held = inspections.claim(
            session,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease_seconds=place.settings.lease_seconds,
            max_crashes=place.settings.max_crashes,
        )
    if held is None:
        return False
    log.info("%s %s: inspection %d begins", held.kind, held.id, held.attempt)
    hold = _Hold(held, place)
    try:
        hold.write(_inspect(hold))
    except LeaseLost:
        log.warning("%s %s: inspection %d is no longer ours", held.kind, held.id, held.attempt)
    log.info("%s %s: inspection %d is over", held.kind, held.id, held.attempt)
    return True


class _Hold:
    """An inspection that is kept as long as `beat` is called, and given up in time where the database is away."""

    def __init__(self, held: Inspection, place: Workplace) -> None:
        self.held, self.place = held, place
        self._renewed_at = monotonic()

    def beat(self) -> None:
        """Renew the lease when it is time. Raises LeaseLost, and _Stopping when this worker is to stop."""
        self.place.pulse.beat()
        if self.place.stopping.is_set():
            raise _Stopping
        age = monotonic() - self._renewed_at
        if age < self.place.settings.heartbeat_seconds:
            return
        before = monotonic()
        try:
            with self.place.database.writing() as session:
                inspections.renew(session, self.held, lease_seconds=self.place.settings.lease_seconds)
            self._renewed_at = before
        except AWAY as error:
            log.warning("%s: the database is out of reach: %s", self.held.id, why(error))
            if age > self.place.settings.lease_seconds * 2 / 3:
                raise LeaseLost from error

    def write(self, change: Callable[[Session], None]) -> None:
        """Commit how it ended, trying again while the database is out of reach. Raises LeaseLost."""
        while monotonic() - self._renewed_at < self.place.settings.lease_seconds:
            try:
                with self.place.database.writing() as session:
                    return change(session)
            except AWAY as error:
                log.warning("%s: the database is out of reach: %s", self.held.id, why(error))
                self.place.stopping.wait(self.place.settings.poll_seconds)
        raise LeaseLost


class _Stopping(Exception):
    """This worker is to stop."""


def _inspect(hold: _Hold) -> Callable[[Session], None]:
    """Do it, and choose how the row learns of the end. Raises LeaseLost."""
    held, place = hold.held, hold.place
    crash = partial(inspections.record_crash, held=held, max_crashes=place.settings.max_crashes)
    cache = Cache(place.settings.cache_dir, place.settings.cache_bytes)
    try:
        with (
            work_folder(place.settings.work_dir, held.id, held.attempt) as folder,
            cache.hold(held.key, held.sha256, held.size, place.store, beat=hold.beat) as source,
        ):
            # By a name with an ending that says what it is, which is all of the user's name that is kept.
            file = folder / f"upload{_ending(held.filename)}"
            file.symlink_to(source)
            done = _run(command(held, file, folder, place), folder, hold)
            if isinstance(done, FileFailure):
                return partial(inspections.refuse, held=held, failure=done)
            if done is None:
                return crash
            return _deliver(done, folder, hold)
    except _Stopping:
        return partial(inspections.hand_back, held=held)
    except (StorageUnavailable, OSError) as error:
        log.warning("%s %s: %s", held.kind, held.id, error)
        if isinstance(error, StorageFull):
            return partial(inspections.refuse, held=held, failure=_no_room())
        place.stopping.wait(place.settings.poll_seconds)
        return crash


def command(held: Inspection, file: Path, folder: Path, place: Workplace) -> list[str]:
    """Write the command that opens the file."""
    settings = place.settings
    limits = {
        "--most-bytes": settings.inspection_bytes,
        "--most-seconds": settings.inspection_seconds,
        "--most-memory": settings.inspection_memory_bytes,
    }
    said = held.declared.model_dump(exclude_defaults=True) if held.declared else {}
    options = [
        *((name, str(value)) for name, value in limits.items()),
        *((f"--{name}", _write(value)) for name, value in said.items()),
    ]
    given = [f"{name}={value}" for name, value in options]
    fixed = ["--output", str(folder / "out"), "--json", "--until-stdin-closes"]
    return [sys.executable, "-m", "core", f"inspect-{held.kind}", str(file), *fixed, *given]


def _write(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _ending(filename: str) -> str:
    match = re.search(r"\.[A-Za-z0-9]{1,16}$", filename)
    return match[0].lower() if match else ""


def _run(
    arguments: Sequence[str], folder: Path, hold: _Hold
) -> DatasetInspection | ModelInspection | FileFailure | None:
    """Run the process to its end; None where it was killed from outside, and may be tried again."""
    settings = hold.place.settings
    deadline = monotonic() + settings.inspection_seconds + _GRACE_SECONDS
    output, log_file = folder / "stdout", folder / "stderr"
    with output.open("wb") as stdout, log_file.open("wb") as stderr:
        process = subprocess.Popen(
            arguments,
            # It ends when this pipe closes, which it does however this process ends.
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            env=_environment(),
        )
    assert process.stdin
    try:
        with process.stdin:
            while process.poll() is None:
                hold.beat()
                if monotonic() > deadline:
                    return _too_long()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(settings.poll_seconds, 0.2))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _pass_on_warnings(output, hold.held)
    if process.returncode == 0:
        return _read(folder / "out" / inspections.REPORT, hold.held)
    if process.returncode in _KILLED_FROM_OUTSIDE:
        return None
    return _failure(output, process.returncode, log_file)


def _environment() -> dict[str, str]:
    """What the process may know: none of the secrets of this one, and one thread, for it reads for a single user."""
    kept = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _read(report: Path, held: Inspection) -> DatasetInspection | ModelInspection | FileFailure:
    """Read what it found, without trust: a hostile file may have taken the process over."""
    try:
        if report.is_symlink() or report.stat().st_size > _LARGEST_REPORT:
            return _crashed("its report is none")
        found = inspection_report.read(report.read_bytes())
    except (OSError, ValidationError):
        return _crashed("its report cannot be read")
    source = found.sha256 if isinstance(found, DatasetInspection) else found.source_sha256
    if found.kind != held.kind or source != held.sha256:
        return _crashed("its report is of another file")
    return found


def _pass_on_warnings(output: Path, held: Inspection) -> None:
    with output.open("rb") as file:
        for line in file.read(65536).splitlines():
            with suppress(ValidationError):
                warned = reported.read(line)
                if isinstance(warned, reported.Warned):
                    log.warning("%s %s: %s", held.kind, held.id, warned.message[:500])


def _failure(output: Path, exit_code: int, log_file: Path) -> FileFailure:
    last = output.read_bytes()[-65536:].splitlines()[-1:]
    with suppress(ValidationError):
        failed = reported.read(last[0]) if last else None
        if isinstance(failed, reported.Failed):
            return FileFailure.model_validate(failed.model_dump(include={"code", "message", "hint", "field"}))
    said = log_file.read_bytes()[-500:].decode(errors="replace").strip()
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    log.warning("an inspection ended by %s: %s", how, said)
    return _crashed(f"it was ended by {how}")


def _deliver(found: DatasetInspection | ModelInspection, folder: Path, hold: _Hold) -> Callable[[Session], None]:
    """Put what it has made into the object store. Raises StorageUnavailable, LeaseLost, _Stopping."""
    held, store = hold.held, hold.place.store
    out = folder / "out"
    names = [inspections.REPORT, MODEL] if isinstance(found, ModelInspection) else [inspections.REPORT]
    if isinstance(found, DatasetInspection):
        names += [thumbnail.file for thumbnail in found.thumbnails]
    for name in names:
        hold.beat()
        path = out / name
        if not re.fullmatch(r"[a-z0-9-]+\.[a-z]+", name) or path.is_symlink() or not path.is_file():
            return partial(inspections.refuse, held=held, failure=_crashed("what it made is not there"))
        store.put(f"{held.prefix}/{name}", path)
    if isinstance(found, DatasetInspection):
        return partial(inspections.accept, held=held, findings=found, key=held.key, size=held.size, sha256=held.sha256)
    key, size = f"{held.prefix}/{MODEL}", (out / MODEL).stat().st_size
    return partial(inspections.accept, held=held, findings=found, key=key, size=size, sha256=found.sha256)


def _crashed(how: str) -> FileFailure:
    return FileFailure(
        code="inspection_crashed",
        message=f"The file could not be inspected: {how}.",
        hint="The file is damaged, or made to do harm: make it anew from its source.",
        field=None,
    )


def _too_long() -> FileFailure:
    return FileFailure(
        code="over_limit",
        message="The inspection was not done in time.",
        hint="Use a smaller file, or have the operator allow more time (TEMPER_INSPECTION_SECONDS).",
        field=None,
    )


def _no_room() -> FileFailure:
    return FileFailure(
        code="disk_full",
        message="The object store has no room for what was made of the file.",
        hint="Tell the operator, then post the file again.",
        field=None,
    )
