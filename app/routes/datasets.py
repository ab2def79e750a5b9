"""Data sets that a job can name: known ones, the operator's, and the project's own, made of an upload."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Path as PathParameter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app import schemas, tables
from app.assets import assets
from app.http.authentication import ProjectId, needs
from app.http.dependencies import FileName, Json, Reading, Service, TheService, Writing, cursor
from app.http.problems import (
    BodyTooLarge,
    FileInUse,
    InvalidBody,
    InvalidParameter,
    MalformedBody,
    NameTaken,
    NotFound,
    NotInspected,
    QuotaExceeded,
    StoreUnavailable,
    UnsupportedMediaType,
    UploadNotUsable,
    problems,
)
from app.platform.paging import list_rows
from app.projects import quotas
from app.routes.assets import (
    GivenName,
    check_name,
    missing,
    send_report,
    show_common,
    the_file,
    the_upload,
)
from core.schema.catalog import DATASETS, DatasetEntry
from core.schema.inspection_report import DatasetInspection

router = APIRouter(tags=["data sets"])

_NOTHING_OWN: dict[str, Any] = {
    "size": None,
    "sha256": None,
    "refused": None,
    "overlap": None,
    "thumbnails": [],
    "failure": None,
    "created_at": None,
    "finished_at": None,
    "report": None,
}


class CreateDataset(BaseModel):
    """The data set to make."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    upload: str = Field(max_length=64)
    """The completed upload, of purpose dataset: a zip of train/<class>/* and test/<class>/*."""
    name: GivenName = Field(examples=["birds"])
    """What jobs are to call it."""


@router.post(
    "/datasets",
    status_code=201,
    dependencies=[needs("files:write"), Json],
    responses={
        201: {"headers": schemas.headers({"Location": "The data set."})},
        **problems(
            MalformedBody,
            BodyTooLarge,
            UnsupportedMediaType,
            InvalidBody,
            NameTaken,
            UploadNotUsable,
            QuotaExceeded,
        ),
    },
)
def create_dataset(
    body: CreateDataset, project_id: ProjectId, session: Writing, service: TheService, response: Response
) -> schemas.Dataset:
    """Make a data set of an upload. A worker inspects it next: then it is ready, or refused with the reason. One that
    was refused makes room for another of its name."""
    check_name(service, "dataset", body.name)
    upload = the_upload(session, project_id, body.upload, "dataset")
    dataset = assets.add_dataset(session, project_id, body.name, upload)
    quotas.check(session, project_id, service.settings, "waiting_tasks")
    service.doorbell.ring_after_commit(session)
    response.headers["Location"] = f"/datasets/{dataset.id}"
    return _own(dataset)


@router.get("/datasets", responses=problems(InvalidParameter), dependencies=[needs("jobs:read")])
def list_datasets(
    project_id: ProjectId,
    session: Reading,
    service: TheService,
    after: Annotated[
        str | None, AfterValidator(cursor("ds")), Query(description="The cursor: the `last_id` of the part before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Of the project's own, in one part.")] = 100,
) -> schemas.Page[schemas.Dataset]:
    """List the data sets that a job can use: first those of this instance, then the project's own, oldest first."""
    mine = [tables.Dataset.project_id == project_id]
    part = list_rows(session, tables.Dataset, tables.Dataset.id, mine, after=after, limit=limit, order="asc")
    known = [] if after else _known(service)
    return schemas.page([*known, *(_own(dataset) for dataset in part.rows)], has_more=part.has_more)


@router.get("/datasets/{dataset_id}", responses=problems(NotFound), dependencies=[needs("jobs:read")])
def get_dataset(dataset_id: FileName, project_id: ProjectId, session: Reading, service: TheService) -> schemas.Dataset:
    """Get a data set by its id or name."""
    dataset = _find(session, project_id, dataset_id)
    if dataset:
        return _own(dataset)
    found = next((each for each in _known(service) if each.id == dataset_id), None)
    if found is None:
        raise missing("dataset", dataset_id)
    return found


@router.get(
    "/datasets/{dataset_id}/report",
    response_model=DatasetInspection,
    responses=problems(NotFound, NotInspected, StoreUnavailable),
    dependencies=[needs("jobs:read")],
)
def get_dataset_report(dataset_id: FileName, project_id: ProjectId, session: Reading, service: TheService) -> Response:
    """Get what the inspection of a data set has found: classes, counts, refused images with reasons, overlap."""
    return send_report(service, "dataset", the_file(session, "dataset", project_id, dataset_id))


@router.get(
    "/datasets/{dataset_id}/thumbnails/{number}",
    response_class=Response,
    responses={
        200: {
            "description": "A small PNG.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(NotFound, InvalidParameter, StoreUnavailable),
    },
    dependencies=[needs("jobs:read")],
)
def get_thumbnail(
    dataset_id: FileName,
    number: Annotated[int, PathParameter(ge=0, description="Which one, from 0.")],
    project_id: ProjectId,
    session: Reading,
    service: TheService,
) -> Response:
    """Get one of a data set's thumbnails."""
    dataset = the_file(session, "dataset", project_id, dataset_id)
    thumbnails = dataset.summary["thumbnails"] if dataset.summary else []
    if number >= len(thumbnails):
        raise NotFound(f"the data set has {len(thumbnails)} thumbnails")
    key = f"{dataset.report_prefix}/{thumbnails[number]['file']}"
    headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
    return Response(b"".join(service.store.read(key)), media_type="image/png", headers=headers)


@router.delete(
    "/datasets/{dataset_id}",
    status_code=204,
    responses=problems(NotFound, FileInUse),
    dependencies=[needs("files:write")],
)
def delete_dataset(dataset_id: FileName, project_id: ProjectId, session: Writing) -> None:
    """Delete a data set of the project's own, and its files. Jobs that have not ended keep it."""
    assets.remove(session, the_file(session, "dataset", project_id, dataset_id))


def _find(session: Session, project_id: str, dataset_id: str) -> tables.Dataset | None:
    found = assets.find(session, "dataset", project_id, dataset_id)
    return found if isinstance(found, tables.Dataset) else None


def _known(service: Service) -> list[schemas.Dataset]:
    local = service.registry.local_datasets()
    shipped = [_shipped(entry) for entry in DATASETS.values() if not entry.streamed or entry.name in local]
    return [*shipped, *(_local(name, path) for name, path in local.items() if name not in DATASETS)]


def _own(dataset: assets.File) -> schemas.Dataset:
    summary = dataset.summary or {}
    known = {name: summary.get(name) for name in ("shape", "classes", "train_examples", "test_examples")}
    found = {name: summary.get(name) for name in ("refused", "overlap")}
    thumbnails = [
        {
            "href": f"/datasets/{dataset.id}/thumbnails/{number}",
            **{name: each[name] for name in ("name", "part", "label")},
        }
        for number, each in enumerate(summary.get("thumbnails", []))
    ]
    return schemas.Dataset.model_validate(
        {
            **show_common("dataset", dataset),
            "description": f"{dataset.filename}, uploaded.",
            "eps": {},
            "thumbnails": thumbnails,
            **known,
            **found,
        }
    )


def _shipped(entry: DatasetEntry) -> schemas.Dataset:
    return schemas.Dataset.model_validate(
        {
            **_NOTHING_OWN,
            "id": entry.name,
            "object": "dataset",
            "name": entry.name,
            "source": "shipped",
            "status": "ready",
            "description": entry.description,
            "shape": entry.shape,
            "classes": entry.classes,
            "train_examples": entry.train_examples,
            "test_examples": entry.test_examples,
            "eps": entry.eps,
        }
    )


def _local(name: str, path: Path) -> schemas.Dataset:
    return schemas.Dataset.model_validate(
        {
            **_NOTHING_OWN,
            "id": name,
            "object": "dataset",
            "name": name,
            "source": "local",
            "status": "ready",
            "description": f"{path.name} in the datasets folder.",
            "shape": None,
            "classes": None,
            "train_examples": None,
            "test_examples": None,
            "eps": {},
        }
    )
