"""Projects, and the keys that open them."""

from datetime import datetime
from typing import Literal, get_args

from app.schemas.answer import Answer, Listed
from app.schemas.usage import Quota, QuotaState

Scope = Literal["jobs:read", "jobs:write", "files:write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class ApiKey(Listed):
    """A key to a project. What it is called here never contains the secret."""

    object: Literal["api_key"]
    """What this is."""
    name: str
    """A label for people."""
    project_id: str
    """The project that it opens."""
    prefix: str
    """How the key begins: enough to know it by, not to use it."""
    scopes: list[Scope]
    """What it may do."""
    created_at: datetime
    """When it was made."""
    created_by: str | None
    """Id of the key that made it; null for the first one of an instance."""
    expires_at: datetime | None
    """From when on it is refused; null for never."""
    last_used_at: datetime | None
    """When it was last used, to the minute."""
    revoked_at: datetime | None
    """Since when it is refused for good."""


class NewApiKey(ApiKey):
    """A key that was just made."""

    secret: str
    """The key itself. It is shown now and never again."""


class Project(Listed):
    """Whose things are whose: every job, file and key belongs to one project."""

    object: Literal["project"]
    """What this is."""
    name: str
    """A label for people."""
    created_at: datetime
    """When it was made."""
    quotas: dict[Quota, int]
    """The limits that an operator gave it; for all else, the instance's hold."""


class RateLimit(Answer):
    """How often a key may ask."""

    requests: int
    """So many requests."""
    seconds: int
    """In any so many seconds."""


class Me(Answer):
    """Who asks, and what they may do."""

    project: Project
    """The project that the key opens."""
    key: ApiKey
    """The key of this request."""
    scopes: list[Scope]
    """What the key may do."""
    quotas: list[QuotaState]
    """What the project may have, and has."""
    rate_limit: RateLimit
    """How often the key may ask."""
