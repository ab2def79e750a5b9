"""Weights that a job has delivered."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Listed


class Checkpoint(Listed):
    """Weights that a job has delivered, with their spec and report inside."""

    object: Literal["checkpoint"]
    """What this is."""
    job_id: str
    """The job that made it."""
    attempt: int
    """The attempt that made it."""
    created_at: datetime
    """When it was stored."""
    step: int
    """Training steps behind it."""
    epoch: float
    """Epochs behind it."""
    format: Literal["safetensors"]
    """Of the file."""
    size: int
    """Bytes."""
    sha256: str
    """Of the file."""
    download: str
    """Where the file is."""
