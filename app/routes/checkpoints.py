"""Checkpoints: what there is of a job, and the file itself, whole or in parts."""

import re
from base64 import b64encode
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import AfterValidator
from sqlalchemy.orm import Session

from app import schemas, tables
from app.assets import checkpoints
from app.http.authentication import ProjectId, needs
from app.http.dependencies import CheckpointId, JobId, Reading, Service, TheService, cursor, stored
from app.http.entity_tags import ETAG, IfNoneMatch, is_known, not_modified, tag_of
from app.http.problems import InvalidParameter, NotFound, RangeNotSatisfiable, StoreUnavailable, TooManyAtOnce, problems
from app.routes import streams
from app.routes.jobs import the_job
from app.routes.transfers import send

router = APIRouter(tags=["checkpoints"], dependencies=[needs("jobs:read")])

_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_HEADERS = schemas.headers(
    {
        "ETag": "The SHA-256 of the whole file, in quotes, for If-Range and If-None-Match.",
        "Accept-Ranges": "bytes",
        "Repr-Digest": "SHA-256 of the whole file, as RFC 9530 has it.",
        "X-Checksum-Sha256": "SHA-256 of the whole file, in hexadecimal.",
    }
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@router.get("/jobs/{job_id}/checkpoints", responses=problems(NotFound, InvalidParameter))
def list_checkpoints(
    job_id: JobId,
    project_id: ProjectId,
    session: Reading,
    after: Annotated[
        str | None,
        AfterValidator(cursor("ckpt")),
        Query(description="The cursor: the `last_id` of the previous page."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Checkpoints in one page.")] = 20,
) -> schemas.Page[schemas.Checkpoint]:
    """List a job's checkpoints, oldest first."""
    part = checkpoints.list_checkpoints(session, the_job(session, project_id, job_id).id, after=after, limit=limit)
    return schemas.page([_show(checkpoint) for checkpoint in part.rows], has_more=part.has_more)


@router.get("/checkpoints/{checkpoint_id}", responses=problems(NotFound))
def get_checkpoint(checkpoint_id: CheckpointId, project_id: ProjectId, session: Reading) -> schemas.Checkpoint:
    """Get a checkpoint's description."""
    return _show(_the_checkpoint(session, project_id, checkpoint_id))


@router.head("/checkpoints/{checkpoint_id}/download", include_in_schema=False)
@router.get(
    "/checkpoints/{checkpoint_id}/download",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The safetensors file.", "content": _FILE, "headers": _HEADERS},
        206: {
            "description": "The part of it that Range asks for.",
            "content": _FILE,
            "headers": _HEADERS | schemas.headers({"Content-Range": "Which bytes these are, and of how many."}),
        },
        304: {"description": "If-None-Match names the file as it is: you have it.", "headers": ETAG},
        307: {
            "description": "The file is in an object store: ask there, with the same Range and without the API key.",
            "headers": schemas.headers(
                {
                    "Location": "The file's address for the next minutes.",
                    "X-Checksum-Sha256": "SHA-256 of the whole file, in hexadecimal.",
                }
            ),
        },
        **problems(NotFound, RangeNotSatisfiable, StoreUnavailable, TooManyAtOnce),
    },
)
async def download_checkpoint(
    request: Request,
    checkpoint_id: CheckpointId,
    project_id: ProjectId,
    service: TheService,
    until_sent: streams.UntilSent,
    range_: Annotated[str | None, Header(alias="Range", description="One range of bytes, to resume with.")] = None,
    if_range: Annotated[str | None, Header(description="Apply Range only if this is still the ETag.")] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download the file, here or, where it lies in an object store that clients reach, from there.
    `X-Checksum-Sha256` carries the hash of the whole of it. HEAD gives only the headers."""
    checkpoint = await run_sync(_load, service, project_id, checkpoint_id)
    etag = tag_of(checkpoint.sha256)
    if is_known(etag, if_none_match):
        return not_modified(etag)
    file_name = f"{checkpoint.id}.safetensors"
    presigner = service.store.presigner
    if presigner and request.method == "GET":
        signed = await stored(service, project_id, lambda: presigner.download(checkpoint.key, file_name=file_name))
        there = {"Cache-Control": "no-store", "X-Checksum-Sha256": checkpoint.sha256}
        return RedirectResponse(signed.url, headers=there)
    size = await stored(service, project_id, service.store.size, checkpoint.key)
    wanted = range_ if if_range in (None, etag) else None
    start, stop = _span(wanted, size) or (0, size)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{file_name}"',
        "Content-Length": str(stop - start),
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(checkpoint.sha256)).decode()}:",
        "X-Checksum-Sha256": checkpoint.sha256,
    }
    if (start, stop) != (0, size):
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 206 if "Content-Range" in headers else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    content = service.store.read(checkpoint.key, start=start, stop=stop)
    sent = await send(content, service, project_id, until_sent)
    return StreamingResponse(sent, status, headers, media_type="application/octet-stream")


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """Read a Range header as the bytes from start to before stop; None for all. Several spans are answered with all."""
    match = _RANGE.fullmatch(header or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise RangeNotSatisfiable(f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _load(service: Service, project_id: str, checkpoint_id: str) -> tables.Checkpoint:
    with service.database.reading() as session:
        return _the_checkpoint(session, project_id, checkpoint_id)


def _the_checkpoint(session: Session, project_id: str, checkpoint_id: str) -> tables.Checkpoint:
    checkpoint = checkpoints.find_checkpoint(session, project_id, checkpoint_id)
    if checkpoint is None:
        raise NotFound(f"there is no checkpoint {checkpoint_id!r} in this project")
    return checkpoint


def _show(checkpoint: tables.Checkpoint) -> schemas.Checkpoint:
    return schemas.Checkpoint(
        id=checkpoint.id,
        object="checkpoint",
        job_id=checkpoint.job_id,
        attempt=checkpoint.attempt,
        created_at=checkpoint.created_at,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        format="safetensors",
        size=checkpoint.size,
        sha256=checkpoint.sha256,
        download=f"/checkpoints/{checkpoint.id}/download",
    )
