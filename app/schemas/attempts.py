"""One worker's hold on a job, and what came of it."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Answer

Outcome = Literal["succeeded", "failed", "cancelled", "paused", "handed_back", "lost"]


class Attempt(Answer):
    """One claim of a job by one worker."""

    object: Literal["attempt"]
    """What this is."""
    number: int
    """From 1."""
    worker: str
    """Who had it: machine and process."""
    device: str | None
    """What the training process computed on, once it has said so."""
    started_at: datetime
    """When the worker claimed the job."""
    ended_at: datetime | None
    """When it let go of it, or was no longer heard of."""
    outcome: Outcome | None
    """How it ended: handed_back where the worker was stopped, lost where it or the training process vanished."""
    cause: str | None
    """Why it was lost or has failed."""
    resumed_step: int | None
    """The training step of the state that it went on from, of an evaluation how often it had kept what it had
    found; null where it began anew."""
    log_size: int
    """Bytes of its log that are stored by now."""
