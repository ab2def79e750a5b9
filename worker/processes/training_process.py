"""The training process: the command that starts it, the events that it reports, and how to pause, stop or kill it."""

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from threading import Event, Thread
from time import monotonic

from pydantic import ValidationError

from app.assets.registry import Registry
from app.jobs.leases import Claim
from core.schema import events as reported
from core.schema.catalog import DATASETS, DOWNLOADS
from worker.host import count_gpus
from worker.processes.child_process import ChildProcess
from worker.processes.confined import confined, confined_processes

_BATCH_SECONDS = 1.0
_STALLED_STEPS = 20
"""A step that takes this many times the median step has stalled."""


def core_command(claim: Claim, folder: Path, registry: Registry) -> list[str]:
    """Return the command that runs a claimed job in its work folder, which holds its spec.json, or the reports of its
    shards where the job merges those. It is confined to that folder and the files that the job reads."""
    common = ["--json", "--output", str(folder), "--until-stdin-closes"]
    if claim.merges:
        reports = [str(shard_report_path(folder, number)) for number in range(1, claim.merges + 1)]
        return confined("core", "merge", *reports, *common, write=folder)
    paths = {
        "--weights": registry.weights(claim.spec),
        "--data": registry.data(claim.spec),
        "--extra-data": registry.extra_data(claim.spec),
    }
    given = {option: path for option, path in paths.items() if path}
    options = [part for option, path in given.items() for part in (option, str(path))]
    # The inspection report of an uploaded data set counts its unreadable images; the run leaves out the same ones.
    if registry.fetched.keys() & {"dataset", "extra_dataset"}:
        options.append("--leave-out-unusable")
    if claim.shard:
        options += ["--shard", f"{claim.shard.number}/{claim.shard.count}"]
    run = ["core", claim.spec.kind, str(folder / "spec.json"), *options, *common]
    read = [*given.values(), DOWNLOADS.expanduser() / claim.spec.dataset]
    if (gpus := gpus_wanted(claim)) > 1:
        return confined_processes(*run, count=gpus, read=read, write=folder)
    dataset = DATASETS.get(claim.spec.dataset)
    needs_sockets = count_gpus() > 0 or (dataset is not None and dataset.streamed)
    return confined(*run, read=read, write=folder, sockets="unix" if needs_sockets else "none")


def gpus_wanted(claim: Claim) -> int:
    """Return the number of GPUs that a job asks for; with more than one, torchrun starts its processes."""
    return getattr(claim.spec, "gpus", 1)


def shard_report_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's report, numbered from 1, in the work folder of the job that merges them."""
    return folder / f"shard-{number}.json"


class TrainingProcess(ChildProcess):
    """A running `python -m core`, which reports events on its standard output.

    folder: its work folder. log: file for its standard error. torchrun: whether the command is torchrun, whose children
    do the training, each in a process group of its own. stall_seconds: see `find_stall`.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, *, log: Path, torchrun: bool, stall_seconds: float
    ) -> None:
        self._torchrun = torchrun
        self._stalls = _StallDetector(folder, stall_seconds)
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._all_read = Event()
        super().__init__(command, stderr=log)
        self._threads = [Thread(target=self._read_output), Thread(target=self._kill_orphans)]
        for thread in self._threads:
            thread.start()

    def batches(self) -> Iterator[list[reported.Event]]:
        """Yield the events that the process reports, the first at once and then once a second, until its output ends.

        A Saved event ends its batch: the history must not show later events before that file is stored.
        """
        while (line := self._lines.get()) is not None:
            batch = list(self._read_batch(line))
            self._stalls.learn_from(batch)
            yield batch
            if self._lines.empty():
                # Reading line by line would wake this process often, and the training may share its only core.
                self._all_read.wait(_BATCH_SECONDS)

    def request_pause(self) -> None:
        """Ask the process to save its state and end."""
        self.signal_group(signal.SIGTERM)

    def request_early_stop(self) -> None:
        """Ask the process to deliver the best weights so far. Only after its Started event: before that, it has no
        handler, and the signal would end it."""
        for process in _children(self.pid) if self._torchrun else [self.pid]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGUSR1)

    def find_stall(self) -> str | None:
        """Describe a stall of the process, such as a hung collective operation or loader; None when there is none.

        It is stalled when it has neither reported an event nor changed a file in its work folder for `stall_seconds`,
        or for 20 times its median training step where that is longer.
        """
        return self._stalls.find()

    def _read_batch(self, line: bytes | None) -> Iterator[reported.Event]:
        with suppress(Empty):
            while line is not None:
                event = _read_event(line)
                yield event
                if isinstance(event, reported.Saved):
                    return
                line = self._lines.get_nowait()
            self._lines.put(None)

    def _read_output(self) -> None:
        assert self.output
        for line in self.output:
            self._stalls.event_at = monotonic()
            self._lines.put(line)
        self._lines.put(None)
        self._all_read.set()

    def _kill_orphans(self) -> None:
        # What the process leaves running when it ends would hold its output open.
        self.wait()
        self.kill_all()
        self._input.close()


class _StallDetector:
    """Measures the time since the last event or the last change of a file in the work folder, where an evaluation
    stores its state without an event."""

    def __init__(self, folder: Path, stall_seconds: float) -> None:
        self.event_at = monotonic()
        """When the last event was reported."""
        self._folder = folder
        self._stall_seconds = stall_seconds
        self._steps: deque[float] = deque(maxlen=101)
        self._trained_seconds = 0.0
        self._newest_change = 0.0
        self._changed_at = monotonic()

    def learn_from(self, events: Sequence[reported.Event]) -> None:
        """Measure how long a training step takes."""
        for event in events:
            if isinstance(event, reported.Stepped):
                # The first step of an attempt includes the training time of earlier attempts.
                if self._trained_seconds:
                    self._steps.append(event.seconds - self._trained_seconds)
                self._trained_seconds = event.seconds

    def find(self) -> str | None:
        self._look_for_changes()
        silent = monotonic() - max(self.event_at, self._changed_at)
        limit = max(self._stall_seconds, _STALLED_STEPS * median(self._steps) if self._steps else 0)
        return f"it reported no event and changed no file for {silent:.0f} s" if silent > limit else None

    def _look_for_changes(self) -> None:
        # Logs do not count: a process that hangs may still write to them.
        times = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime if path.suffix != ".log" else 0.0)
        newest = max(times, default=0.0)
        if newest != self._newest_change:
            self._newest_change, self._changed_at = newest, monotonic()


def _children(process: int) -> list[int]:
    """Find the children of a process, on systems with /proc."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def _read_event(line: bytes) -> reported.Event:
    try:
        return reported.read(line)
    except ValidationError:
        text = line.decode(errors="replace").strip()
        return reported.Warned(code="unreadable_output", message=f"the training process printed: {text[:500]}")
