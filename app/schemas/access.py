"""Projects and their API keys."""

from datetime import datetime
from typing import Literal, get_args

from pydantic import Field

from app.schemas.answer import Answer, Listed
from app.schemas.usage import Quota, QuotaState

Scope = Literal["jobs:read", "jobs:write", "files:write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class ApiKey(Listed):
    """An API key of a project, without its secret."""

    object: Literal["api_key"]
    """Type of the object."""
    name: str
    """A label for people."""
    project_id: str
    """The project that the key gives access to."""
    prefix: str
    """The first characters of the key: they identify it and are not enough to use it."""
    scopes: list[Scope]
    """What requests with the key may do."""
    created_at: datetime
    """When the key was made."""
    created_by: str | None
    """Id of the key that made this one; null for the first key of an instance."""
    expires_at: datetime | None
    """When the key expires; null for never."""
    last_used_at: datetime | None
    """When the key was last used, to the minute."""
    revoked_at: datetime | None
    """When the key was revoked, which is final; null while it is not."""


class NewApiKey(ApiKey):
    """A new API key with its secret."""

    secret: str = Field(repr=False)
    """The key itself. Only this answer contains it."""


class Project(Listed):
    """A project. Every job, data set, model, upload and key belongs to exactly one."""

    object: Literal["project"]
    """Type of the object."""
    name: str
    """A label for people."""
    created_at: datetime
    """When the project was made."""
    quotas: dict[Quota, int]
    """The limits that an operator set for this project; the instance's defaults apply to all other quotas."""


class RateLimit(Answer):
    """How many requests a key may send in a time window."""

    requests: int
    """Number of requests that are allowed in the window."""
    seconds: int
    """Length of the window in seconds."""


class Me(Answer):
    """The project and the key of this request, and what they may do."""

    project: Project
    """The project that the key belongs to."""
    key: ApiKey
    """The key of this request."""
    scopes: list[Scope]
    """What requests with the key may do."""
    quotas: list[QuotaState]
    """The quotas of the project, and what it uses of each."""
    rate_limit: RateLimit
    """How many requests the key may send."""
