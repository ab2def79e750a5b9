"""Attempts at a job."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Answer

Outcome = Literal["succeeded", "failed", "cancelled", "paused", "handed_back", "lost"]


class Attempt(Answer):
    """One worker's try at a job."""

    object: Literal["attempt"]
    """Type of the object."""
    number: int
    """Number of the attempt, from 1."""
    worker: str
    """The worker: machine and process."""
    device: str | None
    """The device of the training process, once it has reported it."""
    started_at: datetime
    """When the worker claimed the job."""
    ended_at: datetime | None
    """When the attempt ended or its lease expired."""
    outcome: Outcome | None
    """How the attempt ended: handed_back if the worker was stopped, lost if the worker or the training process
    vanished; null while it runs."""
    cause: str | None
    """Why the attempt was lost or failed."""
    resumed_step: int | None
    """The training step of the state that the attempt resumed from; of an evaluation, the number of times that its
    state had been saved; null if it started from the beginning."""
    log_size: int
    """Bytes of the attempt's log that are stored so far."""
