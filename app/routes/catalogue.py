"""Training methods and networks that a job can name."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from app import schemas
from app.http.authentication import needs
from app.http.problems import problems
from core.schema.catalog import ARCHITECTURES, METHODS, ArchitectureEntry, MethodEntry

router = APIRouter(tags=["catalogue"], dependencies=[needs("jobs:read")])


@router.get("/methods", responses=problems())
def list_methods() -> schemas.Page[schemas.Method]:
    """List the training methods."""
    methods = [
        schemas.Method(id=entry.name, object="method", **_shown(entry, schemas.Method)) for entry in METHODS.values()
    ]
    return schemas.page(methods, has_more=False)


@router.get("/architectures", responses=problems())
def list_architectures() -> schemas.Page[schemas.Architecture]:
    """List the networks that can be trained from random weights."""
    architectures = [
        schemas.Architecture(id=entry.name, object="architecture", **_shown(entry, schemas.Architecture))
        for entry in ARCHITECTURES.values()
    ]
    return schemas.page(architectures, has_more=False)


def _shown(entry: MethodEntry | ArchitectureEntry, answer: type[schemas.Answer]) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name in answer.model_fields}
