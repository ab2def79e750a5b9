"""The Python client of a Temper service. It needs neither torch nor the service's own code.

from client import Temper

temper = Temper()
job = temper.submit({"base_model": "digits-cnn-linf"})
temper.wait(job.id)
temper.download(job.id, "robust.safetensors")
"""

from client.errors import (
    BadDownload,
    CannotRead,
    CannotWrite,
    NoCheckpoint,
    NoKey,
    NotUploaded,
    Refused,
    ServiceFailed,
    StillRunning,
    TemperError,
    Unreachable,
    Unreadable,
)
from client.temper import Temper

__all__ = [
    "BadDownload",
    "CannotRead",
    "CannotWrite",
    "NoCheckpoint",
    "NoKey",
    "NotUploaded",
    "Refused",
    "ServiceFailed",
    "StillRunning",
    "Temper",
    "TemperError",
    "Unreachable",
    "Unreadable",
]
