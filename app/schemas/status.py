"""Statuses of a job and actions on it, without pydantic, so that `temper --help` can list them."""

from typing import Literal

Status = Literal["queued", "running", "pausing", "paused", "stopping", "cancelling", "succeeded", "failed", "cancelled"]
Action = Literal["pause", "resume", "stop", "cancel", "retry"]
