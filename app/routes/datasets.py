"""Data sets that a job can name: shipped ones, the operator's, and the project's own, created from uploads."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Path as PathParameter
from pydantic import AfterValidator, Field

from app import schemas, tables
from app.assets import assets
from app.http.authentication import ProjectId, needs
from app.http.dependencies import AssetName, Json, Reading, Service, TheService, Writing, cursor
from app.http.entity_tags import ETAG, IfNoneMatch
from app.http.problems import (
    FileInUse,
    InvalidParameter,
    NotFound,
    NotInspected,
    StoreUnavailable,
    TooManyAtOnce,
    problems,
)
from app.projects import quotas
from app.routes.assets import (
    CREATION_PROBLEMS,
    REPORT_ANSWERS,
    GivenName,
    Limit,
    check_name,
    get_any,
    list_all,
    load_asset,
    send_object,
    send_report,
    show_common,
    show_provided,
    the_asset,
    the_upload,
)
from core.schema.catalog import DATASETS, DatasetEntry
from core.schema.dataset_spec import DatasetSpec
from core.schema.inspection_report import DatasetInspection
from core.schema.preprocessing import Preprocessing

router = APIRouter(tags=["data sets"])

_COUNTED = ("refused", "unread", "transparent", "overlap", "repeated", "conflicting")
_FOUND = ("format", "sizes", "proposal")
_NOT_INSPECTED: dict[str, Any] = {
    **dict.fromkeys((*_COUNTED, *_FOUND)),
    "warnings": [],
    "thumbnails": [],
    "test_share": None,
}
"""Fields that only the inspection of a project's own fills."""
_SIZES = ("shape", "classes", "train_examples", "test_examples", "held_out_examples")


class CreateDataset(DatasetSpec, defer_build=False):
    """The data set to create."""

    upload: str = Field(max_length=64)
    """The completed upload, of purpose dataset: a zip or tar archive with train/<class>/* and test/<class>/*, arrays of
    NumPy in a .npz file, Parquet files, or the files of CIFAR."""
    name: GivenName = Field(examples=["birds"])
    """The name by which jobs use it."""

    def declared(self) -> DatasetSpec:
        """Return what the body declares about the file."""
        return DatasetSpec.model_validate(self.model_dump(include=set(DatasetSpec.model_fields)))


@router.post(
    "/datasets",
    status_code=201,
    dependencies=[needs("files:write"), Json],
    responses={
        201: {"headers": schemas.headers({"Location": "The data set."})},
        **problems(*CREATION_PROBLEMS),
    },
)
def create_dataset(
    body: CreateDataset, project_id: ProjectId, session: Writing, service: TheService, response: Response
) -> schemas.Dataset:
    """Create a data set from an upload. A worker then inspects it: the data set becomes ready, or refused with the
    reason. A data set of the same name that was refused is replaced."""
    check_name(service, "dataset", body.name)
    upload = the_upload(session, project_id, body.upload, "dataset")
    dataset = assets.add_dataset(session, project_id, body.name, upload, body.declared())
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
        str | None, AfterValidator(cursor("ds")), Query(description="The cursor: the `last_id` of the previous page.")
    ] = None,
    limit: Limit = 100,
) -> schemas.Page[schemas.Dataset]:
    """List the data sets that a job can use: first those of this instance, then the project's own, oldest first."""
    return list_all(session, "dataset", project_id, lambda: _provided(service), _own, after=after, limit=limit)


@router.get("/datasets/{dataset_id}", responses=problems(NotFound), dependencies=[needs("jobs:read")])
def get_dataset(dataset_id: AssetName, project_id: ProjectId, session: Reading, service: TheService) -> schemas.Dataset:
    """Get a data set by its id or name."""
    return get_any(session, "dataset", project_id, lambda: _provided(service), _own, name_or_id=dataset_id)


@router.get(
    "/datasets/{dataset_id}/report",
    response_model=DatasetInspection,
    responses={**REPORT_ANSWERS, **problems(NotFound, NotInspected, StoreUnavailable, TooManyAtOnce)},
    dependencies=[needs("jobs:read")],
)
async def get_dataset_report(
    dataset_id: AssetName, project_id: ProjectId, service: TheService, if_none_match: IfNoneMatch = None
) -> Response:
    """Get the report of the inspection of a data set: classes, counts, files that are not read with reasons, images
    that occur more than once, warnings."""
    return await send_report(service, "dataset", project_id, dataset_id, if_none_match)


@router.get(
    "/datasets/{dataset_id}/thumbnails/{number}",
    response_class=Response,
    responses={
        200: {
            "description": "A small PNG.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            "headers": ETAG,
        },
        304: {"description": "If-None-Match names the PNG as it is.", "headers": ETAG},
        **problems(NotFound, InvalidParameter, StoreUnavailable, TooManyAtOnce),
    },
    dependencies=[needs("jobs:read")],
)
async def get_thumbnail(
    dataset_id: AssetName,
    number: Annotated[int, PathParameter(ge=0, description="The number of the thumbnail, from 0.")],
    project_id: ProjectId,
    service: TheService,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Get one of a data set's thumbnails."""
    dataset = await load_asset(service, "dataset", project_id, dataset_id)
    thumbnails = dataset.summary["thumbnails"] if dataset.summary else []
    if number >= len(thumbnails):
        raise NotFound(f"there is no thumbnail {number}: the data set has {len(thumbnails)}, numbered from 0")
    key = f"{dataset.report_prefix}/{thumbnails[number]['file']}"
    headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
    return await send_object(service, project_id, key, "image/png", if_none_match, headers)


@router.delete(
    "/datasets/{dataset_id}",
    status_code=204,
    responses=problems(NotFound, FileInUse),
    dependencies=[needs("files:write")],
)
def delete_dataset(dataset_id: AssetName, project_id: ProjectId, session: Writing) -> None:
    """Delete a data set of the project's own, and its files. Jobs that have not ended keep it."""
    assets.remove(session, the_asset(session, "dataset", project_id, dataset_id))


def _provided(service: Service) -> list[schemas.Dataset]:
    local = service.registry.local_datasets()
    shipped = [_shipped(entry) for entry in DATASETS.values() if not entry.streamed or entry.name in local]
    return [*shipped, *(_local(name, path) for name, path in local.items() if name not in DATASETS)]


def _own(dataset: tables.Asset) -> schemas.Dataset:
    summary = dataset.summary or {}
    found = {name: summary.get(name) for name in (*_SIZES, *_COUNTED, *_FOUND)}
    declared = DatasetSpec.model_validate(dataset.declared)
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
            "warnings": summary.get("warnings", []),
            "thumbnails": thumbnails,
            "preprocessing": declared.preprocessing.model_dump(),
            "test_share": declared.test_share,
            **found,
        }
    )


def _shipped(entry: DatasetEntry) -> schemas.Dataset:
    return schemas.Dataset.model_validate(
        {
            **show_provided("dataset", entry.name, source="shipped", description=entry.description),
            **_NOT_INSPECTED,
            "shape": entry.shape,
            "classes": entry.classes,
            "train_examples": entry.train_examples,
            "test_examples": entry.test_examples,
            "held_out_examples": 0,
            "preprocessing": Preprocessing(**entry.preprocessing).model_dump(),
            "eps": entry.eps,
        }
    )


def _local(name: str, path: Path) -> schemas.Dataset:
    return schemas.Dataset.model_validate(
        {
            **show_provided("dataset", name, source="local", description=f"{path.name} in the datasets folder."),
            **_NOT_INSPECTED,
            **dict.fromkeys(_SIZES),
            "preprocessing": Preprocessing().model_dump(),
            "eps": {},
        }
    )
