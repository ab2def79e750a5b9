"""Training methods, networks and threats that a job can name."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from app import schemas
from app.assets.architectures import packaged_networks
from app.http.authentication import needs
from app.http.dependencies import Reading
from app.http.problems import problems
from core.schema.catalog import ARCHITECTURES, METHODS, Entry, find_architecture
from core.schema.threats import PRESETS, THREATS

router = APIRouter(tags=["catalogue"], dependencies=[needs("jobs:read")])


@router.get("/methods", responses=problems())
def list_methods() -> schemas.Page[schemas.Method]:
    """List the training methods."""
    methods = [
        schemas.Method(id=entry.name, object="method", **_shown(entry, schemas.Method)) for entry in METHODS.values()
    ]
    return schemas.page(methods, has_more=False)


@router.get("/architectures", responses=problems())
def list_architectures(session: Reading) -> schemas.Page[schemas.Architecture]:
    """List the networks that can be trained from random weights: those of the catalogue, and own/NAME for those of
    packages that are installed beside the workers."""
    packaged = [entry for name in packaged_networks(session) if (entry := find_architecture(name))]
    architectures = [
        schemas.Architecture(id=entry.name, object="architecture", **_shown(entry, schemas.Architecture))
        for entry in (*ARCHITECTURES.values(), *packaged)
    ]
    return schemas.page(architectures, has_more=False)


@router.get("/threats", responses=problems())
def list_threats() -> schemas.Page[schemas.Threat]:
    """List the threats that `evaluation.unseen` can name, and the presets of them."""
    named = {
        name: [preset.name for preset in PRESETS.values() if name in {each["name"] for each in preset.threats}]
        for name in THREATS
    }
    threats = [
        schemas.Threat(id=entry.name, object="threat", presets=named[entry.name], **_shown(entry, schemas.Threat))
        for entry in THREATS.values()
    ]
    return schemas.page(threats, has_more=False)


def _shown(entry: Entry, answer: type[schemas.Answer]) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name in answer.model_fields}
