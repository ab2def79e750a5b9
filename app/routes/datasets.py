"""Data sets that a job can name: known ones and the operator's own."""

from pathlib import Path

from fastapi import APIRouter

from app import schemas
from app.auth import needs
from app.dependencies import TheService
from app.errors import problems
from core.catalog import DATASETS, DatasetEntry

router = APIRouter(tags=["catalogue"], dependencies=[needs("jobs:read")])


@router.get("/datasets", responses=problems())
def list_datasets(service: TheService) -> schemas.Page[schemas.Dataset]:
    """List the data sets that a job can use."""
    local = service.inventory.local_datasets()
    shipped = [_shipped(entry) for entry in DATASETS.values() if not entry.streamed or entry.name in local]
    own = [_local(name, path) for name, path in local.items() if name not in DATASETS]
    return schemas.page([*shipped, *own], has_more=False)


def _shipped(entry: DatasetEntry) -> schemas.Dataset:
    return schemas.Dataset(
        id=entry.name,
        object="dataset",
        source="shipped",
        description=entry.description,
        shape=entry.shape,
        classes=entry.classes,
        train_examples=entry.train_examples,
        test_examples=entry.test_examples,
        eps=entry.eps,
    )


def _local(name: str, path: Path) -> schemas.Dataset:
    return schemas.Dataset(
        id=name,
        object="dataset",
        source="local",
        description=f"{path.name} in the datasets folder.",
        shape=None,
        classes=None,
        train_examples=None,
        test_examples=None,
        eps={},
    )
