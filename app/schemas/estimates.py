"""What a job may take, and what it took."""

from typing import Literal

from app.schemas.answer import Answer

Basis = Literal["history", "passes", "none"]


class Duration(Answer):
    """How long, in seconds."""

    p50: float
    """Half of such jobs take no longer."""
    p90: float
    """Nine in ten take no longer."""


class Estimate(Answer):
    """What a job was expected to take when it was posted; waiting is not in it."""

    seconds: Duration | None
    """Time at work, from the start of the training process to its last file; null where nothing is known."""
    peak_memory_bytes: int | None
    """The most memory that such jobs have had, of the GPU or, on a CPU, of the machine; null where none has finished
    here with the same batch sizes."""
    storage_bytes: int | None
    """What its checkpoint and its log will take in the object store; null where none such has finished here."""
    passes: int | None
    """Passes of single images through the network, forward and backward, that the job makes at most; null for a data
    set whose size nobody knows."""
    basis: Basis
    """history: jobs of the same kind, data set, model and method that have finished here, scaled by the passes. passes:
    other jobs of the same network on the same data set, scaled likewise. none: nothing like it has finished here."""
    runs: int
    """How many finished jobs it stands on, 20 at most."""
    unavailable_reason: str | None
    """Why nothing is known; null where something is."""


class Actual(Answer):
    """What a job has taken in the end."""

    seconds: float
    """Time at work of all its attempts."""
    peak_memory_bytes: int | None
    """The most memory it has had, of the GPU or, on a CPU, of the machine; null where it did not come to its end."""
    storage_bytes: int
    """What its checkpoints and logs took in the object store when it ended."""
