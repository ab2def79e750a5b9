"""Shared parts of the routes of data sets and models: names, uploads, reports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from anyio.to_thread import run_sync
from fastapi import Query, Response
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app import schemas, tables
from app.assets import assets, inspections, uploads
from app.http.dependencies import Service, stored
from app.http.entity_tags import ETAG, answer_file
from app.http.problems import (
    BodyTooLarge,
    InvalidBody,
    MalformedBody,
    NameTaken,
    NotFound,
    NotInspected,
    QuotaExceeded,
    UnsupportedMediaType,
    UploadNotUsable,
)
from app.platform.ids import is_id
from core.schema.spec import Name
from core.schema.validation import FieldError

Shown = TypeVar("Shown", schemas.Dataset, schemas.Model)

CREATION_PROBLEMS = (
    MalformedBody,
    BodyTooLarge,
    UnsupportedMediaType,
    InvalidBody,
    NameTaken,
    UploadNotUsable,
    QuotaExceeded,
)
_IDS = ("ds", "model", "ckpt")


def _no_id(name: str) -> str:
    if any(is_id(prefix, name) for prefix in _IDS):
        raise PydanticCustomError("reserved_name", "this is an id; choose a name such as birds")
    return name


GivenName = Annotated[Name, Field(min_length=1), AfterValidator(_no_id)]
"""A name that a project can give to a file of its own."""
Limit = Annotated[int, Query(ge=1, le=100, description="The number of the project's own in one page.")]


def check_name(service: Service, kind: assets.Kind, name: str) -> None:
    """Refuse a name that the catalogue or the operator has. Raises NameTaken."""
    if service.registry.has(kind, name):
        raise NameTaken(f"{name!r} is the name of a {assets.WORDS[kind]} of this instance; choose another name")


def the_upload(session: Session, project_id: str, upload_id: str, kind: assets.Kind) -> tables.Upload:
    """Find an upload of this project for a purpose. Raises InvalidBody, UploadNotUsable."""
    upload = uploads.find_upload(session, project_id, upload_id) if is_id("upl", upload_id) else None
    if upload is None:
        unknown = f"there is no upload {upload_id!r} in this project; POST /uploads announces one"
        raise InvalidBody([FieldError(pointer="/upload", code="unknown_id", detail=unknown)])
    if upload.purpose != kind:
        raise UploadNotUsable(f"the upload was announced as a {upload.purpose}, not as a {kind}")
    return upload


def the_asset(session: Session, kind: assets.Kind, project_id: str, name_or_id: str) -> tables.Asset:
    """Find a data set or model of this project. Raises NotFound."""
    asset = assets.find(session, kind, project_id, name_or_id)
    if asset is None:
        raise _missing(kind, name_or_id)
    return asset


def list_all(
    session: Session,
    kind: assets.Kind,
    project_id: str,
    provided: Callable[[], Sequence[Shown]],
    show: Callable[[tables.Asset], Shown],
    *,
    after: str | None,
    limit: int,
) -> schemas.Page[Shown]:
    """List those that the instance provides, on the first page, and then the project's own, oldest first."""
    part = assets.list_own(session, kind, project_id, after=after, limit=limit)
    shown = [] if after else list(provided())
    shown += [show(asset) for asset in part.rows]
    return schemas.page(shown, has_more=part.has_more)


def get_any(
    session: Session,
    kind: assets.Kind,
    project_id: str,
    provided: Callable[[], Sequence[Shown]],
    show: Callable[[tables.Asset], Shown],
    *,
    name_or_id: str,
) -> Shown:
    """Show one of the project's own, or one that the instance provides. Raises NotFound."""
    if asset := assets.find(session, kind, project_id, name_or_id):
        return show(asset)
    found = next((each for each in provided() if each.id == name_or_id), None)
    if found is None:
        raise _missing(kind, name_or_id)
    return found


def _missing(kind: assets.Kind, name_or_id: str) -> NotFound:
    return NotFound(f"there is no {assets.WORDS[kind]} {name_or_id!r} in this project")


REPORT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"headers": ETAG},
    304: {"description": "If-None-Match names the report as it is.", "headers": ETAG},
}


async def load_asset(service: Service, kind: assets.Kind, project_id: str, name_or_id: str) -> tables.Asset:
    """Find a data set or model of this project, in a transaction that is over by then. Raises NotFound."""

    def load() -> tables.Asset:
        with service.database.reading() as session:
            return the_asset(session, kind, project_id, name_or_id)

    return await run_sync(load)


async def send_report(
    service: Service, kind: assets.Kind, project_id: str, name_or_id: str, if_none_match: str | None
) -> Response:
    """Answer with the report of an inspection, or that the client has it. Raises NotFound, NotInspected."""
    asset = await load_asset(service, kind, project_id, name_or_id)
    if asset.status != "ready":
        raise NotInspected(f"the {assets.WORDS[kind]} is {asset.status} and has no report")
    key = f"{asset.report_prefix}/{inspections.REPORT}"
    return await send_object(service, project_id, key, "application/json", if_none_match)


async def send_object(
    service: Service,
    project_id: str,
    key: str,
    media_type: str,
    if_none_match: str | None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with the whole of a small object, or that the client has it. Raises StorageUnavailable, NoPlace."""
    content = await stored(service, project_id, lambda: b"".join(service.store.read(key)))
    return answer_file(content, media_type, if_none_match, headers)


def show_input(job_input: tables.Input) -> schemas.JobInput:
    """Show an input of a job."""
    return schemas.JobInput.model_validate(
        {
            "field": job_input.field,
            "id": job_input.source_id,
            "sha256": job_input.sha256,
            "made_by": show_made_by(job_input.made_by_job, job_input.made_by_checkpoint),
        }
    )


def show_made_by(job: str | None, checkpoint: str | None) -> schemas.MadeBy | None:
    """Show where a model comes from."""
    return schemas.MadeBy(job=job, checkpoint=checkpoint) if job and checkpoint else None


def show_provided(
    kind: assets.Kind, name: str, *, source: Literal["shipped", "local"], description: str
) -> dict[str, Any]:
    """Show the common fields of a data set or model that the instance provides."""
    return {
        "id": name,
        "object": kind,
        "name": name,
        "source": source,
        "status": "ready",
        "description": description,
        "size": None,
        "sha256": None,
        "failure": None,
        "created_at": None,
        "finished_at": None,
        "report": None,
    }


def show_common(kind: assets.Kind, asset: tables.Asset) -> dict[str, Any]:
    """Show the common fields of a data set or model of the project's own."""
    ready = asset.status == "ready"
    return {
        "id": asset.id,
        "object": kind,
        "name": asset.name,
        "source": "own",
        "status": asset.status,
        "size": asset.size,
        "sha256": asset.sha256,
        "failure": asset.failure,
        "created_at": asset.created_at,
        "finished_at": asset.finished_at,
        "report": f"/{kind}s/{asset.id}/report" if ready else None,
    }
