"""Uploads: announce a file, send its parts in any order, complete or abort it.

Where clients reach the object store, they send the parts there, by requests that are signed for one part each;
elsewhere they send them here. `POST /uploads/{id}/parts` says which, so a client need not know.
"""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from app import schemas, tables
from app.assets import uploads
from app.http.authentication import ProjectId, needs
from app.http.body import Body
from app.http.dependencies import (
    Json,
    Reading,
    Service,
    TheService,
    UploadId,
    Writing,
    carried,
    cursor,
    in_turn,
    stored,
)
from app.http.patterns import SHA256
from app.http.places import NoPlace
from app.http.problems import (
    BodyTooLarge,
    InvalidBody,
    InvalidParameter,
    MalformedBody,
    NotFound,
    QuotaExceeded,
    StoreFull,
    StoreUnavailable,
    TooManyAtOnce,
    UnsupportedMediaType,
    UploadDamaged,
    UploadEnded,
    UploadIncomplete,
    problems,
)
from app.platform.paging import Order
from app.projects import quotas
from app.storage import SignedRequest, StorageFull, StorageUnavailable
from core.schema.spec import Text
from core.schema.validation import FieldError

router = APIRouter(tags=["uploads"], dependencies=[needs("files:write")])

PART_BYTES = 16 * 1024**2
"""Bytes of one part of an upload; more where there would be more than 10,000 parts. S3 takes no less than 5 MiB."""
UPLOAD_SECONDS = 86_400.0
"""An upload without a request for this time expires."""
_BODY = (MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidBody)
_PART = re.compile(r"(/v1)?/uploads/[^/]+/parts/[^/]+")
_AT_ONCE = 64 * 1024**2
"""Bytes that are verified while the client waits for the answer; more is done after it."""
_BUFFER = 1024**2
_PART_PATIENCE_SECONDS = 20.0
"""Time for which a part that has been received waits to be stored: to send it again would take longer."""
Sha256 = Annotated[str, Field(pattern=SHA256)]


def counts_its_body(method: str, path: str) -> bool:
    """Whether a request sends a part of a file: its route takes exactly the announced number of bytes."""
    return method == "PUT" and _PART.fullmatch(path) is not None


class CreateUpload(Body):
    """The file to send."""

    filename: Text = Field(min_length=1, max_length=255, examples=["birds.zip"])
    """The name of the file; a label, not a path."""
    bytes: StrictInt = Field(ge=1, le=1024**4)
    """The size of the file in bytes."""
    sha256: Sha256 = Field(examples=["0" * 64])
    """SHA-256 of the whole file, in small hexadecimal letters."""
    purpose: schemas.Purpose
    """What the file is for."""


class PartToSend(Body):
    """A part to send."""

    number: StrictInt = Field(ge=1)
    """The number of the part, from 1."""
    sha256: Sha256 = Field(examples=["0" * 64])
    """SHA-256 of the part."""


class RequestParts(Body):
    """The parts to send."""

    parts: list[PartToSend] = Field(min_length=1, max_length=100)
    """The parts; request the next ones once these are being sent."""


class UploadFilter(BaseModel):
    """Which uploads to list."""

    model_config = ConfigDict(extra="forbid")

    status: schemas.UploadStatus | None = Field(default=None, description="Only uploads in this status.")
    purpose: schemas.Purpose | None = Field(default=None, description="Only uploads for this purpose.")
    sha256: Sha256 | None = Field(default=None, description="Only uploads of this file.")
    after: Annotated[str | None, AfterValidator(cursor("upl"))] = Field(
        default=None, description="The cursor: the `last_id` of the previous page."
    )
    limit: int = Field(default=20, ge=1, le=100, description="Uploads in one page.")
    order: Order = Field(default="desc", description="desc: newest first.")


@router.post(
    "/uploads",
    status_code=201,
    dependencies=[Json],
    responses={
        201: {"headers": schemas.headers({"Location": "The upload."})},
        **problems(*_BODY, QuotaExceeded),
    },
)
def create_upload(
    body: CreateUpload, project_id: ProjectId, session: Writing, service: TheService, response: Response
) -> schemas.Upload:
    """Announce a file. Its bytes count against the quota unless the upload ends without success."""
    upload = uploads.create(
        session,
        project_id,
        filename=body.filename,
        size=body.bytes,
        sha256=body.sha256,
        purpose=body.purpose,
        part_size=PART_BYTES,
        seconds=UPLOAD_SECONDS,
    )
    quotas.check(session, project_id, service.settings, "stored_bytes")
    response.headers["Location"] = f"/uploads/{upload.id}"
    return show_upload(upload, received=[])


@router.get("/uploads", responses=problems(InvalidParameter))
def list_uploads(
    project_id: ProjectId, session: Reading, chosen: Annotated[UploadFilter, Query()]
) -> schemas.Page[schemas.Upload]:
    """List uploads, newest first."""
    part = uploads.list_uploads(
        session,
        project_id,
        matching=chosen.model_dump(include={"status", "purpose", "sha256"}),
        after=chosen.after,
        limit=chosen.limit,
        order=chosen.order,
    )
    return schemas.page(
        [show_upload(upload, received=None) for upload in part.rows], has_more=part.has_more, last=part.last
    )


@router.get("/uploads/{upload_id}", responses=problems(NotFound, StoreUnavailable, TooManyAtOnce))
async def get_upload(upload_id: UploadId, project_id: ProjectId, service: TheService) -> schemas.Upload:
    """Get an upload: the parts that have arrived, and after its completion whether the file was verified."""
    upload = await run_sync(_load, service, project_id, upload_id)
    if upload.status != "pending":
        return show_upload(upload, received=None)
    return await stored(service, project_id, _show, upload, service)


@router.post(
    "/uploads/{upload_id}/parts",
    dependencies=[Json],
    responses=problems(*_BODY, NotFound, UploadEnded, StoreUnavailable, TooManyAtOnce),
)
async def request_parts(
    body: RequestParts, upload_id: UploadId, project_id: ProjectId, service: TheService
) -> schemas.UploadRequests:
    """Get the requests that send some parts. A part may be requested again, such as when its request has expired."""
    upload = await in_turn(service, _open, service, project_id, upload_id)
    _check_numbers(body, upload)
    multipart_id = await _multipart_id(upload, service) if uploads.part_count(upload) > 1 else None
    requests = await stored(
        service, project_id, lambda: [_request(part, upload, multipart_id, service) for part in body.parts]
    )
    return schemas.UploadRequests(object="list", data=requests)


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses=problems(
        NotFound,
        UploadEnded,
        BodyTooLarge,
        UploadDamaged,
        InvalidParameter,
        StoreUnavailable,
        StoreFull,
        TooManyAtOnce,
    ),
)
async def put_part(
    request: Request,
    upload_id: UploadId,
    number: Annotated[int, PathParameter(ge=1, description="The part's number, from 1.")],
    project_id: ProjectId,
    service: TheService,
    x_checksum_sha256: Annotated[
        str | None, Header(pattern=SHA256, description="SHA-256 of the part, in hexadecimal.")
    ] = None,
) -> schemas.UploadPart:
    """Send a part: the body is its bytes. A part that is sent again replaces the earlier one."""
    with service.places.transfers.at_once(project_id):
        return await _put_part(request, upload_id, number, project_id, service, x_checksum_sha256)


async def _put_part(
    request: Request, upload_id: str, number: int, project_id: str, service: Service, x_checksum_sha256: str | None
) -> schemas.UploadPart:
    upload = await in_turn(service, _open, service, project_id, upload_id)
    if number > uploads.part_count(upload):
        raise NotFound(f"the upload has the parts 1 to {uploads.part_count(upload)}")
    size = uploads.bytes_of_part(upload, number)
    with _spool(service.settings.spool_dir) as path:
        sha256 = await _receive(request, path, size)
        if x_checksum_sha256 not in (None, sha256):
            raise UploadDamaged(f"the body's sha256 is {sha256} and not {x_checksum_sha256}; send it again")
        try:
            multipart_id = await _multipart_id(upload, service)
            store, key = service.store.multipart, uploads.quarantine(upload)
            await stored(
                service, project_id, store.upload_part, key, multipart_id, number, path, seconds=_PART_PATIENCE_SECONDS
            )
        except StorageUnavailable:
            # It may have ended meanwhile.
            await in_turn(service, _open, service, project_id, upload_id)
            raise
    return schemas.UploadPart(number=number, bytes=size, sha256=sha256)


@router.post(
    "/uploads/{upload_id}/complete",
    responses=problems(NotFound, UploadEnded, UploadIncomplete, UploadDamaged, StoreUnavailable, TooManyAtOnce),
)
async def complete_upload(upload_id: UploadId, project_id: ProjectId, service: TheService) -> schemas.Upload:
    """Verify the file, once all parts have arrived. A large file is `verifying` for a while: GET shows the result.
    Completing twice is not an error."""
    return await carried(service, project_id, _complete, service, project_id, upload_id)


def _complete(service: Service, project_id: str, upload_id: str) -> schemas.Upload:
    upload = _load(service, project_id, upload_id)
    upload = uploads.complete(upload, service.database, service.store, seconds=UPLOAD_SECONDS)
    if upload.size <= _AT_ONCE:
        # Where the store does not answer, the maintenance of some API process tries again later.
        with suppress(StorageUnavailable):
            uploads.verify(upload_id, service.database, service.store)
        upload = _load(service, project_id, upload_id)
    if upload.failure:
        raise UploadDamaged(f"{upload.failure['message']} {upload.failure['hint']}")
    return _show(upload, service)


@router.post("/uploads/{upload_id}/abort", responses=problems(NotFound, UploadEnded))
async def abort_upload(upload_id: UploadId, project_id: ProjectId, service: TheService) -> schemas.Upload:
    """Abort an upload, which frees its room at once. Aborting twice is not an error."""
    upload = await in_turn(service, _abort, service, project_id, upload_id)
    # What is left now is removed later.
    with suppress(StorageUnavailable, NoPlace):
        await stored(service, project_id, uploads.clear, upload, service.store)
    return show_upload(upload, received=None)


def _abort(service: Service, project_id: str, upload_id: str) -> tables.Upload:
    with service.database.writing() as session:
        return uploads.abort(session, _the_upload(session, project_id, upload_id).id)


def show_upload(upload: tables.Upload, *, received: list[int] | None) -> schemas.Upload:
    """Show an upload to its owner."""
    return schemas.Upload.model_validate(
        {
            "id": upload.id,
            "object": "upload",
            "filename": upload.filename,
            "purpose": upload.purpose,
            "bytes": upload.size,
            "sha256": upload.sha256,
            "status": upload.status,
            "failure": upload.failure,
            "part_bytes": upload.part_size,
            "parts": uploads.part_count(upload),
            "received": received,
            "created_at": upload.created_at,
            "expires_at": upload.expires_at,
            "ended_at": upload.ended_at,
        }
    )


def _show(upload: tables.Upload, service: Service) -> schemas.Upload:
    received = uploads.received(upload, service.store) if upload.status == "pending" else None
    return show_upload(upload, received=received)


def _the_upload(session: Session, project_id: str, upload_id: str) -> tables.Upload:
    upload = uploads.find_upload(session, project_id, upload_id)
    if upload is None:
        raise NotFound(f"there is no upload {upload_id!r} in this project")
    return upload


def _load(service: Service, project_id: str, upload_id: str) -> tables.Upload:
    # The object store may be slow: no transaction waits for it.
    with service.database.reading() as session:
        return _the_upload(session, project_id, upload_id)


def _open(service: Service, project_id: str, upload_id: str) -> tables.Upload:
    """Find a pending upload and postpone its expiry. Raises NotFound, UploadEnded."""
    with service.database.writing() as session:
        return uploads.keep_alive(session, _the_upload(session, project_id, upload_id).id, seconds=UPLOAD_SECONDS)


def _check_numbers(body: RequestParts, upload: tables.Upload) -> None:
    count = uploads.part_count(upload)
    errors = [
        FieldError(
            pointer=f"/parts/{place}/number", code="no_such_part", detail=f"the upload has the parts 1 to {count}"
        )
        for place, part in enumerate(body.parts)
        if part.number > count
    ]
    if count == 1 and not errors:
        errors = [
            FieldError(pointer=f"/parts/{place}/sha256", code="another_file", detail="the only part is the whole file")
            for place, part in enumerate(body.parts)
            if part.sha256 != upload.sha256
        ]
    if errors:
        raise InvalidBody(errors)


async def _multipart_id(upload: tables.Upload, service: Service) -> str:
    """Return the id of the multipart upload, and create it where there is none. Raises UploadEnded."""
    if upload.multipart_id:
        return upload.multipart_id
    return await carried(service, upload.project_id, uploads.ensure_multipart, upload, service.database, service.store)


def _request(
    part: PartToSend, upload: tables.Upload, multipart_id: str | None, service: Service
) -> schemas.UploadRequest:
    size, number, sha256 = uploads.bytes_of_part(upload, part.number), part.number, part.sha256
    key, presigner = uploads.quarantine(upload), service.store.presigner
    if presigner is None:
        headers = {"Content-Type": "application/octet-stream", "X-Checksum-Sha256": sha256}
        signed = SignedRequest(f"/uploads/{upload.id}/parts/{number}", headers)
    elif multipart_id is None:
        signed = presigner.upload(key, size=size, sha256=sha256)
    else:
        signed = presigner.upload_part(key, multipart_id, number, size=size, sha256=sha256)
    return schemas.UploadRequest(number=number, bytes=size, method="PUT", url=signed.url, headers=dict(signed.headers))


@contextmanager
def _spool(folder: Path) -> Iterator[Path]:
    """Create a temporary file. Raises StorageFull, StorageUnavailable."""
    try:
        with NamedTemporaryFile(dir=folder) as file:
            yield Path(file.name)
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageUnavailable
        raise kind(f"the spool folder: {error.strerror}") from error


async def _receive(request: Request, path: Path, size: int) -> str:
    """Write the body to a file; return its sha256. Raises UploadDamaged, BodyTooLarge."""
    declared = request.headers.get("content-length")
    if declared is not None and declared != str(size):
        raise _wrong_length(size, declared)
    arrived, buffer, received = hashlib.sha256(), bytearray(), 0

    def write() -> None:
        with path.open("ab") as file:
            file.write(buffer)
        arrived.update(buffer)
        buffer.clear()

    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > size:
                raise BodyTooLarge(f"the body is longer than the {size} bytes of this part")
            buffer += chunk
            if len(buffer) >= _BUFFER:
                await run_sync(write)
    except ClientDisconnect:
        raise _wrong_length(size, received) from None
    await run_sync(write)
    if received != size:
        raise _wrong_length(size, received)
    return arrived.hexdigest()


def _wrong_length(size: int, got: int | str) -> UploadDamaged:
    return UploadDamaged(f"this part has {size} bytes, and the body {got}; send the part again")
