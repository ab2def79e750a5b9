"""The Python client of a Temper service. It needs neither torch nor the code of the service.

from client import Temper

temper = Temper()
job = temper.jobs.submit({"base_model": "digits-cnn-linf"})
temper.jobs.wait(job.id)
temper.checkpoints.download(job.id, "robust.safetensors")
"""

from typing import TYPE_CHECKING, Any

from client.errors import (
    BadAddress,
    BadDownload,
    CannotRead,
    CannotWrite,
    NoCheckpoint,
    NoKey,
    NoSuchJob,
    NotUploaded,
    Refused,
    ServiceFailed,
    StillRunning,
    TemperError,
    Unreachable,
    Unreadable,
)

if TYPE_CHECKING:
    from client.temper import Temper

__all__ = [
    "BadAddress",
    "BadDownload",
    "CannotRead",
    "CannotWrite",
    "NoCheckpoint",
    "NoKey",
    "NoSuchJob",
    "NotUploaded",
    "Refused",
    "ServiceFailed",
    "StillRunning",
    "Temper",
    "TemperError",
    "Unreachable",
    "Unreadable",
]


def __getattr__(name: str) -> Any:
    # Imported at first use: `temper --help` needs neither HTTP nor the classes of the answers.
    if name == "Temper":
        from client.temper import Temper

        return Temper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
