"""Checkpoints of jobs."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Listed


class Checkpoint(Listed):
    """Weights that a job delivered. The file also contains the spec and the report."""

    object: Literal["checkpoint"]
    """Type of the object."""
    job_id: str
    """The job that made it."""
    attempt: int
    """Number of the attempt that made it."""
    created_at: datetime
    """When it was stored."""
    step: int
    """Training steps done."""
    epoch: float
    """Epochs done, as a fraction."""
    format: Literal["safetensors"]
    """Format of the file."""
    size: int
    """Bytes of the file."""
    sha256: str
    """SHA-256 of the file."""
    download: str
    """Address of the file."""
