"""What the service says of itself."""

from typing import Literal

from app.schemas.answer import Answer


class Index(Answer):
    """Where to go from here."""

    service: str
    """What answers here."""
    docs: str
    """The routes, for people."""
    openapi: str
    """The routes, for programs."""
    ready: str
    """Whether the service can work."""
    version: str
    """Which Temper this is."""


class Health(Answer):
    """Whether a probe is content."""

    status: Literal["ok"]
    """Anything else is a problem with status 503."""


class Version(Answer):
    """What runs here."""

    version: str
    """Of Temper; "source" where it runs without being installed."""
    api: Literal["v1"]
    """Of the routes: each is also there under this prefix."""
