"""The OpenAPI document: problems as what they are, the scope of every operation, and an example of every body."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from app.http.authentication import Needs
from app.http.problems import name_media_type
from app.schemas.job_request import EvaluateRequest, TrainRequest

_SHA256 = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
EXAMPLES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("post", "/jobs"): {
        "smallest": {"base_model": "digits-cnn-linf"},
        "fine-tune": {
            "base_model": "digits-cnn-linf",
            "method": "e-at",
            "epochs": 3,
            "eps": {"linf": 0.15, "l2": 0.5, "l1": 1.5},
            "evaluation": {"protocol": "fast", "examples": 100},
        },
        "evaluate": {"kind": "evaluate", "base_model": "digits-cnn-linf", "evaluation": {"protocol": "standard"}},
        "train": {"kind": "train", "architecture": "digits-cnn", "dataset": "digits", "epochs": 10},
    },
    ("post", "/jobs/{job_id}/clone"): {"another seed": {"overrides": {"seed": 1}}},
    ("post", "/models"): {
        "an upload": {
            "upload": "upl_01K5ZK9M3B8V5Q2X7N4T6R1WYC",
            "name": "birds-linf",
            "architecture": "resnet-18",
            "shape": [3, 64, 64],
            "norm": "linf",
            "eps": "4/255",
        },
        "a checkpoint": {"checkpoint": "ckpt_01K5ZK9M3B8V5Q2X7N4T6R1WYC", "name": "birds-robust"},
    },
    ("post", "/datasets"): {"an upload": {"upload": "upl_01K5ZK9M3B8V5Q2X7N4T6R1WYC", "name": "birds"}},
    ("post", "/webhooks"): {"ends of jobs": {"url": "https://example.com/temper"}},
    ("patch", "/webhooks/{webhook_id}"): {"other events": {"events": ["job.failed"]}},
    ("post", "/uploads"): {
        "a data set": {"filename": "birds.zip", "bytes": 1048576, "sha256": _SHA256, "purpose": "dataset"}
    },
    ("post", "/uploads/{upload_id}/parts"): {"the first part": {"parts": [{"number": 1, "sha256": _SHA256}]}},
    ("post", "/api_keys"): {"read only": {"name": "ci", "scopes": ["jobs:read"]}},
    ("post", "/projects"): {"a project": {"name": "vision"}},
    ("patch", "/projects/{project_id}"): {"a quota": {"quotas": {"running_jobs": 2}}},
}
"""Bodies that are valid as they stand, by method and path; `/docs` offers them where a request is tried."""


class Api(FastAPI):
    """FastAPI, whose OpenAPI document is told what FastAPI does not know."""

    def openapi(self) -> dict[str, Any]:
        """Describe the API, once."""
        if not self.openapi_schema:
            document = name_media_type(super().openapi())
            _require_kind(document)
            _add_examples(document)
            _add_scopes(document, self)
            self.openapi_schema = document
        return self.openapi_schema


def _require_kind(document: dict[str, Any]) -> None:
    """Require `kind` of all requests but the default one: a request without it would be valid as several kinds."""
    for request in (TrainRequest, EvaluateRequest):
        document["components"]["schemas"][f"{request.__name__}-Input"]["required"].append("kind")


def _add_examples(document: dict[str, Any]) -> None:
    for (method, path), examples in EXAMPLES.items():
        content = document["paths"][path][method]["requestBody"]["content"]["application/json"]
        content["examples"] = {name: {"value": value} for name, value in examples.items()}


def _add_scopes(document: dict[str, Any], app: FastAPI) -> None:
    """Name the scope of each operation, for people in its description and for programs in its security requirement."""
    for route in iter_route_contexts(app.routes):
        operations = document["paths"].get(getattr(route, "path", None), {})
        for scope in set(_scopes(route.dependant)) if operations else ():
            for method in {method.lower() for method in route.methods or ()} & operations.keys():
                operation = operations[method]
                operation["description"] += f"\n\nScope: `{scope}`."
                operation["security"] = [{name: [scope] for name in each} for each in operation["security"]]


def _scopes(dependant: Dependant) -> Iterator[str]:
    """Yield the scopes that a route's dependencies check, at any depth."""
    if isinstance(dependant.call, Needs) and dependant.call.scope:
        yield dependant.call.scope
    for inner in dependant.dependencies:
        yield from _scopes(inner)
