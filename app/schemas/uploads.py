"""Files that clients send."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Answer, Listed

Purpose = Literal["dataset", "model", "result"]
UploadStatus = Literal["pending", "verifying", "completed", "aborted", "expired"]


class UploadFailure(Answer):
    """Why an upload was given up by the service."""

    code: str
    """For programs."""
    message: str
    """What was wrong."""
    hint: str
    """What to do."""


class Upload(Listed):
    """A file that is sent in parts, and becomes usable once the whole of it is there and right."""

    object: Literal["upload"]
    """What this is."""
    filename: str
    """What it is called where it comes from."""
    purpose: Purpose
    """What it is to become."""
    bytes: int
    """How large it is."""
    sha256: str
    """Of the whole file."""
    status: UploadStatus
    """pending: parts are awaited; verifying: it is being hashed; completed, aborted and expired are final."""
    failure: UploadFailure | None
    """Why the service has aborted it."""
    part_bytes: int
    """Bytes of every part but the last, which has the rest."""
    parts: int
    """How many parts it has, numbered from 1."""
    received: list[int] | None
    """Numbers of the parts that are there while it is pending; null in lists and afterwards."""
    created_at: datetime
    """When it was announced."""
    expires_at: datetime
    """When it is given up if nothing more comes."""
    ended_at: datetime | None
    """When it was completed, aborted or given up."""


class UploadRequest(Answer):
    """How to send a part: this request, with the part as its body and exactly these headers."""

    number: int
    """Of the part."""
    bytes: int
    """How many the body has to have."""
    method: Literal["PUT"]
    """Of the request."""
    url: str
    """Where to: an object store, without the API key; or, where it begins with a slash, this service, with it."""
    headers: dict[str, str]
    """What to send with it."""


class UploadRequests(Answer):
    """How to send some parts. Those to an object store are good for a quarter of an hour."""

    object: Literal["list"]
    """What this is."""
    data: list[UploadRequest]
    """In the order in which they were asked for."""


class UploadPart(Answer):
    """A part that has arrived."""

    number: int
    """Of the part."""
    bytes: int
    """How many it has."""
    sha256: str
    """Of the part."""
