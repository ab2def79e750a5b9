"""Shared parts of the routes of data sets and models: names, uploads, reports."""

from typing import Annotated, Any

from fastapi import Response
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app import schemas, tables
from app.assets import assets, inspections, uploads
from app.http.dependencies import Service
from app.http.problems import InvalidBody, NameTaken, NotFound, NotInspected, UploadNotUsable
from app.platform.ids import is_id
from core.schema.spec import Name
from core.schema.validation import FieldError

_IDS = ("ds", "model", "ckpt")


def _no_id(name: str) -> str:
    if any(is_id(prefix, name) for prefix in _IDS):
        raise PydanticCustomError("reserved_name", "this is an id; choose a name such as birds")
    return name


GivenName = Annotated[Name, Field(min_length=1), AfterValidator(_no_id)]
"""A name that a project can give to a file of its own."""


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


def the_file(session: Session, kind: assets.Kind, project_id: str, name_or_id: str) -> assets.File:
    """Find a data set or model of this project. Raises NotFound."""
    file = assets.find(session, kind, project_id, name_or_id)
    if file is None:
        raise missing(kind, name_or_id)
    return file


def missing(kind: assets.Kind, name_or_id: str) -> NotFound:
    """Return the problem of a file that does not exist in this project."""
    return NotFound(f"there is no {assets.WORDS[kind]} {name_or_id!r} in this project")


def send_report(service: Service, kind: assets.Kind, file: assets.File) -> Response:
    """Answer with the report of an inspection. Raises NotInspected."""
    if file.status != "ready":
        raise NotInspected(f"the {assets.WORDS[kind]} is {file.status} and has no report")
    key = f"{file.report_prefix}/{inspections.REPORT}"
    return Response(b"".join(service.store.read(key)), media_type="application/json")


def show_input(taken_in: tables.Input) -> schemas.JobInput:
    """Show what a job takes in."""
    return schemas.JobInput.model_validate(
        {
            "field": taken_in.field,
            "id": taken_in.source_id,
            "sha256": taken_in.sha256,
            "made_by": show_made_by(taken_in.made_by_job, taken_in.made_by_checkpoint),
        }
    )


def show_made_by(job: str | None, checkpoint: str | None) -> schemas.MadeBy | None:
    """Show where a model comes from."""
    return schemas.MadeBy(job=job, checkpoint=checkpoint) if job and checkpoint else None


def show_common(kind: assets.Kind, file: assets.File) -> dict[str, Any]:
    """Show what data sets and models have in common."""
    ready = file.status == "ready"
    return {
        "id": file.id,
        "object": kind,
        "name": file.name,
        "source": "own",
        "status": file.status,
        "size": file.size,
        "sha256": file.sha256,
        "failure": file.failure,
        "created_at": file.created_at,
        "finished_at": file.finished_at,
        "report": f"/{kind}s/{file.id}/report" if ready else None,
    }
