"""Start page, health and version of the service."""

from typing import Literal

from app.schemas.answer import Answer


class Index(Answer):
    """Entry points of the service."""

    service: str
    """Name of the service."""
    docs: str
    """Address of the documentation for people."""
    openapi: str
    """Address of the OpenAPI document for programs."""
    ready: str
    """Address of the readiness probe."""
    version: str
    """Version of Temper."""


class Health(Answer):
    """Result of a health probe."""

    status: Literal["ok"]
    """ok; every other result is a problem with status 503."""


class Readiness(Health):
    """Result of the readiness probe."""

    details: list[str]
    """What an operator should know although the service is ready: work that no living worker could take."""


class Version(Answer):
    """Versions of the service and of its API."""

    version: str
    """Version of Temper; "source" if it runs without being installed."""
    api: Literal["v1"]
    """Version of the routes: each is also available under this prefix."""
