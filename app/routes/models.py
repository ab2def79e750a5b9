"""Base models that a job can name: shipped ones, the operator's, and the project's own, created from uploads or
checkpoints."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from app import schemas, tables
from app.assets import assets, checkpoints
from app.assets.registry import LocalModel
from app.http.authentication import ProjectId, needs
from app.http.dependencies import AssetName, Json, Reading, Service, TheService, Writing, cursor
from app.http.entity_tags import IfNoneMatch
from app.http.problems import (
    FileInUse,
    InvalidBody,
    InvalidParameter,
    NotFound,
    NotInspected,
    StoreUnavailable,
    TooManyAtOnce,
    problems,
)
from app.platform.ids import is_id
from app.projects import quotas
from app.routes.assets import (
    CREATION_PROBLEMS,
    REPORT_ANSWERS,
    GivenName,
    Limit,
    check_name,
    get_any,
    list_all,
    send_report,
    show_common,
    show_made_by,
    show_provided,
    the_asset,
    the_upload,
)
from core.schema.catalog import DATASETS, MODELS, ModelEntry
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import ModelInspection
from core.schema.validation import FieldError

router = APIRouter(tags=["models"])

_NOT_INSPECTED: dict[str, Any] = {
    "parameters": None,
    "key": None,
    "other_keys": [],
    "alternatives": [],
    "made_by": None,
    "warnings": [],
}
"""Fields that only the inspection of a project's own fills."""


class CreateModel(ImportSpec, defer_build=False):
    """The base model to create: from an upload, with what the file itself does not say, or from a checkpoint."""

    name: GivenName = Field(examples=["birds-linf"])
    """The name by which jobs use it."""
    upload: str | None = Field(default=None, max_length=64)
    """The completed upload, of purpose model: a checkpoint of Temper, safetensors, or a torch file of tensors."""
    checkpoint: str | None = Field(default=None, max_length=64)
    """A checkpoint of one of the project's jobs, instead."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.upload is None) == (self.checkpoint is None):
            raise PydanticCustomError("one_of_two", "give either upload or checkpoint")
        if self.checkpoint and self.declared() != ImportSpec():
            raise PydanticCustomError(
                "known_already", "a checkpoint already describes itself: give only its id and a name"
            )
        return self

    def declared(self) -> ImportSpec:
        """Return what the body declares about the file."""
        return ImportSpec.model_validate(self.model_dump(include=set(ImportSpec.model_fields)))


@router.post(
    "/models",
    status_code=201,
    dependencies=[needs("files:write"), Json],
    responses={
        201: {"headers": schemas.headers({"Location": "The model."})},
        **problems(*CREATION_PROBLEMS),
    },
)
def create_model(
    body: CreateModel, project_id: ProjectId, session: Writing, service: TheService, response: Response
) -> schemas.Model:
    """Create a base model from an upload or a checkpoint. A worker then inspects it: the model becomes ready, or
    refused with the reason. A model of the same name that was refused is replaced, even if it has the same upload."""
    check_name(service, "model", body.name)
    if body.upload:
        upload = the_upload(session, project_id, body.upload, "model")
        model = assets.add_model(session, project_id, body.name, upload, body.declared())
        quotas.check(session, project_id, service.settings, "waiting_tasks")
    else:
        checkpoint = _the_checkpoint(session, project_id, body.checkpoint or "")
        model = assets.add_checkpoint(session, project_id, body.name, checkpoint)
        quotas.check(session, project_id, service.settings, "stored_bytes", "waiting_tasks")
    service.doorbell.ring_after_commit(session)
    response.headers["Location"] = f"/models/{model.id}"
    return _own(model)


def _the_checkpoint(session: Reading, project_id: str, checkpoint_id: str) -> tables.Checkpoint:
    known = is_id("ckpt", checkpoint_id)
    checkpoint = checkpoints.find_checkpoint(session, project_id, checkpoint_id) if known else None
    if checkpoint is None:
        unknown = f"there is no checkpoint {checkpoint_id!r} in this project"
        raise InvalidBody([FieldError(pointer="/checkpoint", code="unknown_id", detail=unknown)])
    return checkpoint


@router.get("/models", responses=problems(InvalidParameter), dependencies=[needs("jobs:read")])
def list_models(
    project_id: ProjectId,
    session: Reading,
    service: TheService,
    after: Annotated[
        str | None,
        AfterValidator(cursor("model")),
        Query(description="The cursor: the `last_id` of the previous page."),
    ] = None,
    limit: Limit = 100,
) -> schemas.Page[schemas.Model]:
    """List the base models that a job can start from: first those of this instance, then the project's own, oldest
    first."""
    return list_all(session, "model", project_id, lambda: _provided(service), _own, after=after, limit=limit)


@router.get("/models/{model_id}", responses=problems(NotFound), dependencies=[needs("jobs:read")])
def get_model(model_id: AssetName, project_id: ProjectId, session: Reading, service: TheService) -> schemas.Model:
    """Get a base model by its id or name."""
    return get_any(session, "model", project_id, lambda: _provided(service), _own, name_or_id=model_id)


@router.get(
    "/models/{model_id}/report",
    response_model=ModelInspection,
    responses={**REPORT_ANSWERS, **problems(NotFound, NotInspected, StoreUnavailable, TooManyAtOnce)},
    dependencies=[needs("jobs:read")],
)
async def get_model_report(
    model_id: AssetName, project_id: ProjectId, service: TheService, if_none_match: IfNoneMatch = None
) -> Response:
    """Get the report of the inspection of a base model: network, source, claims, warnings."""
    return await send_report(service, "model", project_id, model_id, if_none_match)


@router.delete(
    "/models/{model_id}",
    status_code=204,
    responses=problems(NotFound, FileInUse),
    dependencies=[needs("files:write")],
)
def delete_model(model_id: AssetName, project_id: ProjectId, session: Writing) -> None:
    """Delete a base model of the project's own, and its files. Jobs that have not ended keep it."""
    assets.remove(session, the_asset(session, "model", project_id, model_id))


def _provided(service: Service) -> list[schemas.Model]:
    local = service.registry.local_models()
    return [*(_shipped(entry) for entry in MODELS.values()), *(_local(name, model) for name, model in local.items())]


def _own(model: tables.Asset) -> schemas.Model:
    assert isinstance(model, tables.Model)
    summary = model.summary or {}
    claims = summary.get("claims", {})
    norm = next(iter(claims)) if len(claims) == 1 else None
    known = {name: summary.get(name) for name in ("architecture", "parameters", "shape", "classes")}
    source = f"{model.filename}, uploaded." if model.upload_id else f"The checkpoint {model.checkpoint_id}."
    return schemas.Model.model_validate(
        {
            **show_common("model", model),
            "description": source,
            "dataset": model.declared.get("dataset") or None,
            "norm": norm,
            "eps": claims[norm] if norm else None,
            "made_by": show_made_by(model.job_id, model.checkpoint_id),
            "key": summary.get("key"),
            "other_keys": summary.get("other_keys", []),
            "alternatives": summary.get("alternatives", []),
            "warnings": summary.get("warnings", []),
            **known,
        }
    )


def _shipped(entry: ModelEntry) -> schemas.Model:
    return schemas.Model.model_validate(
        {
            **show_provided("model", entry.name, source="shipped", description=entry.description),
            **_NOT_INSPECTED,
            "architecture": entry.architecture,
            "shape": DATASETS[entry.dataset].shape,
            "classes": DATASETS[entry.dataset].classes,
            "dataset": entry.dataset,
            "norm": entry.norm,
            "eps": entry.eps,
            "sha256": entry.sha256,
        }
    )


def _local(name: str, model: LocalModel) -> schemas.Model:
    return schemas.Model.model_validate(
        {
            **show_provided(
                "model", name, source="local", description=f"The file {model.path.name} in the models folder."
            ),
            **_NOT_INSPECTED,
            "architecture": None,
            "shape": None,
            "classes": None,
            "dataset": None,
            "norm": None,
            "eps": None,
            "size": model.size,
        }
    )
