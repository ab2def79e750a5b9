"""Base models that a job can name: shipped ones and the operator's own."""

from fastapi import APIRouter

from app import schemas
from app.auth import needs
from app.dependencies import TheService
from app.errors import problems
from app.inventory import LocalModel
from core.catalog import MODELS, ModelEntry

router = APIRouter(tags=["catalogue"], dependencies=[needs("jobs:read")])


@router.get("/models", responses=problems())
def list_models(service: TheService) -> schemas.Page[schemas.Model]:
    """List the base models that a job can start from."""
    shipped = [_shipped(entry) for entry in MODELS.values()]
    local = [_local(name, model) for name, model in service.inventory.local_models().items()]
    return schemas.page([*shipped, *local], has_more=False)


def _shipped(entry: ModelEntry) -> schemas.Model:
    return schemas.Model(
        id=entry.name,
        object="model",
        source="shipped",
        description=entry.description,
        architecture=entry.architecture,
        dataset=entry.dataset,
        norm=entry.norm,
        eps=entry.eps,
        size=None,
    )


def _local(name: str, model: LocalModel) -> schemas.Model:
    return schemas.Model(
        id=name,
        object="model",
        source="local",
        description=f"The file {model.path.name} in the models folder.",
        architecture=None,
        dataset=None,
        norm=None,
        eps=None,
        size=model.size,
    )
