"""Data sets that a worker downloads before a run starts, since the run itself reaches no server."""

import sys
from pathlib import Path

from pydantic import ValidationError

from app.assets.registry import Registry
from app.schemas import Failure
from core.schema import events as reported
from core.schema.catalog import DATASETS, DOWNLOADS
from core.schema.spec import AnySpec
from worker.failures import job_failure
from worker.lease import Lease
from worker.processes.child_process import ChildProcess

_WAIT_SECONDS = 0.2


def is_missing(spec: AnySpec, registry: Registry) -> bool:
    """Whether the run reads a data set that is to be downloaded and is not on this machine."""
    dataset = DATASETS.get(spec.dataset)
    is_downloaded = dataset is not None and dataset.downloaded and registry.data(spec) is None
    return is_downloaded and not (DOWNLOADS.expanduser() / spec.dataset).exists()


def download(name: str, folder: Path, log: Path, lease: Lease) -> Failure | None:
    """Download a data set and return None, or return why that failed. Raises StopRequested, LeaseLost.

    folder: where the process may leave its output. log: file for its standard error.
    """
    command = [sys.executable, "-m", "core", "download", name, "--json", "--until-stdin-closes"]
    output = folder / "download.log"
    with ChildProcess(command, stderr=log, stdout=output, online=True) as process:
        while process.wait(_WAIT_SECONDS) is None:
            lease.check()
    if process.exit_code == 0:
        return None
    try:
        failed = reported.read(output.read_bytes().splitlines()[-1])
    except (IndexError, ValidationError):
        return job_failure("exited", exit=process.describe_exit(), stderr=process.read_stderr_tail())
    assert isinstance(failed, reported.Failed)
    return Failure(**failed.model_dump(exclude={"type"}))
