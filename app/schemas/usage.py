"""What a project has used, and what it may use."""

from datetime import datetime
from typing import Literal, get_args

from app.schemas.answer import Answer
from app.schemas.jobs import Status

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
    """Which one."""
    limit: int | None
    """The most there may be; null for no limit."""
    used: float | None
    """What there is now; null where that is not one number, as for the streams of each key."""


class UsageGroup(Answer):
    """What one group of attempts has used."""

    group: str
    """The day, month, kind, data set or base model."""
    jobs: int
    """Jobs that were at work in it."""
    worker_seconds: float
    """Time that workers spent on them."""
    gpu_seconds: float
    """Time that GPUs were taken, times their number."""


class Usage(Answer):
    """What a project has used between two moments."""

    object: Literal["usage"]
    """What this is."""
    since: datetime
    """From when on."""
    until: datetime
    """Until when."""
    jobs: dict[Status, int]
    """Jobs posted in this time that are still there, by their status now."""
    worker_seconds: float
    """Time that workers spent on jobs in this time."""
    gpu_seconds: float
    """Time that GPUs were taken in this time, times their number."""
    stored_bytes: int
    """Bytes that are stored for the project now."""
    groups: list[UsageGroup]
    """The same, divided as group_by asks; empty without it."""
