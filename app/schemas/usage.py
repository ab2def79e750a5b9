"""Usage and quotas of a project."""

from datetime import datetime
from typing import Literal, get_args

from app.schemas.answer import Answer
from app.schemas.status import Status

GroupBy = Literal["day", "month", "kind", "dataset", "base_model"]
Quota = Literal[
    "queued_jobs",
    "running_jobs",
    "waiting_tasks",
    "gpu_seconds_per_month",
    "stored_bytes",
    "streams_per_key",
    "keys",
]
QUOTAS: tuple[Quota, ...] = get_args(Quota)


class QuotaState(Answer):
    """One quota of a project."""

    quota: Quota
    """Name of the quota."""
    limit: int | None
    """Maximum; null for no limit."""
    used: float | None
    """Amount in use; null if that is not a single number, as with the streams of each key."""


class UsageGroup(Answer):
    """Usage of one group of attempts."""

    group: str
    """The day, month, kind, data set or base model."""
    jobs: int
    """Number of jobs with an attempt in the group."""
    worker_seconds: float
    """Time that workers spent on them."""
    gpu_seconds: float
    """Time of each GPU in use, summed over the GPUs."""


class Usage(Answer):
    """Usage of a project between two moments."""

    object: Literal["usage"]
    """Type of the object."""
    since: datetime
    """Start of the period."""
    until: datetime
    """End of the period."""
    jobs: dict[Status, int]
    """Number of jobs, by their status now, that were posted in the period and have not been deleted."""
    worker_seconds: float
    """Time that workers spent on jobs in the period."""
    gpu_seconds: float
    """Time of each GPU in use in the period, summed over the GPUs."""
    stored_bytes: int
    """Bytes that are stored for the project now."""
    groups: list[UsageGroup]
    """Usage per group of `group_by`; empty without it."""
