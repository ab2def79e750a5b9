"""Uploads of files in parts."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Answer, Listed

Purpose = Literal["dataset", "model", "result"]
UploadStatus = Literal["pending", "verifying", "completed", "aborted", "expired"]


class UploadFailure(Answer):
    """Why the service aborted an upload."""

    code: str
    """Stable, for programs."""
    message: str
    """What was wrong."""
    hint: str
    """What to do."""


class Upload(Listed):
    """A file that is sent in parts. It can be used after all parts have arrived and its hash has been verified."""

    object: Literal["upload"]
    """Type of the object."""
    filename: str
    """Name of the file on the machine that sends it."""
    purpose: Purpose
    """What the file is for."""
    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the whole file."""
    status: UploadStatus
    """pending: waiting for parts. verifying: computing the hash. completed, aborted and expired are final."""
    failure: UploadFailure | None
    """Why the service aborted the upload; null if it did not."""
    part_bytes: int
    """Bytes of every part except the last, which has the remaining bytes."""
    parts: int
    """Number of parts; they are numbered from 1."""
    received: list[int] | None
    """Numbers of the parts that have arrived, while the upload is pending; null in lists and afterwards."""
    created_at: datetime
    """When the upload was announced."""
    expires_at: datetime
    """When the upload expires if no further part arrives."""
    ended_at: datetime | None
    """When the upload was completed, aborted or expired."""


class UploadRequest(Answer):
    """The request that sends one part: send the part as its body, with exactly these headers."""

    number: int
    """Number of the part."""
    bytes: int
    """Bytes of the part, and so of the body."""
    method: Literal["PUT"]
    """Method of the request."""
    url: str
    """Address of the request: an object store, to be called without the API key; or, if it begins with a slash, a path
    of this service, to be called with the key."""
    headers: dict[str, str]
    """Headers of the request."""


class UploadRequests(Answer):
    """Requests that send some parts. A request to an object store is valid for 15 minutes."""

    object: Literal["list"]
    """Type of the object."""
    data: list[UploadRequest]
    """The requests, in the order of the parts that were asked for."""


class UploadPart(Answer):
    """A part that has arrived."""

    number: int
    """Number of the part."""
    bytes: int
    """Bytes of the part."""
    sha256: str
    """SHA-256 of the part."""
