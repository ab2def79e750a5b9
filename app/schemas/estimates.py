"""Estimated and actual cost of a job."""

from typing import Literal

from app.schemas.answer import Answer

Basis = Literal["history", "passes", "none"]


class Duration(Answer):
    """Quantiles of a duration, in seconds."""

    p50: float
    """Median: half of comparable jobs take no longer."""
    p90: float
    """90th percentile: nine in ten comparable jobs take no longer."""


class Estimate(Answer):
    """Expected cost of a job when it was posted, without the time in the queue."""

    seconds: Duration | None
    """Run time, from the start of the training process to its last file; null if there is no basis for an estimate."""
    peak_memory_bytes: int | None
    """Largest peak memory of comparable jobs, of the GPU or, on a CPU, of the machine; null if no job with the same
    batch sizes has finished here."""
    storage_bytes: int | None
    """Bytes of its checkpoint and log in the object store; null if no comparable job has finished here."""
    passes: int | None
    """Upper bound of the forward and backward passes of single images through the network; null if the size of the data
    set is unknown."""
    basis: Basis
    """history: finished jobs with the same kind, data set, model and method, scaled by the passes. passes: other jobs
    of the same network on the same data set, scaled by the passes. none: no comparable job has finished here."""
    runs: int
    """Number of finished jobs that the estimate is based on, at most 20."""
    unavailable_reason: str | None
    """Why there is no estimate; null if there is one."""


class Actual(Answer):
    """Actual cost of a job that has ended."""

    seconds: float
    """Run time of all its attempts."""
    peak_memory_bytes: int | None
    """Peak memory, of the GPU or, on a CPU, of the machine; null if the job did not succeed."""
    storage_bytes: int
    """Bytes of its checkpoints and logs in the object store when it ended."""
