"""API keys: make, list and revoke them; and who a key is."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field
from sqlalchemy.orm import Session

from app import schemas, tables
from app.http import rate_limits
from app.http.authentication import TheCaller, needs
from app.http.body import Body
from app.http.dependencies import Json, KeyId, Moment, Reading, TheService, Writing, cursor
from app.http.problems import (
    BodyTooLarge,
    InvalidBody,
    InvalidParameter,
    LastAdminKey,
    MalformedBody,
    NotFound,
    QuotaExceeded,
    UnsupportedMediaType,
    problems,
)
from app.platform.database import is_past
from app.platform.ids import is_id
from app.platform.paging import Order
from app.projects import keys, quotas
from app.routes.projects import show_project, show_quotas, the_project
from core.schema.spec import Text
from core.schema.validation import FieldError

router = APIRouter(tags=["keys"])


class CreateApiKey(Body):
    """The key to create."""

    name: Text = Field(min_length=1, max_length=128, examples=["ci"])
    """A label for people."""
    scopes: list[schemas.Scope] | None = Field(default=None, min_length=1, max_length=len(schemas.SCOPES))
    """What the key may do; by default all scopes of the key of this request except admin."""
    expires_at: Moment | None = None
    """When the key expires; by default when the key of this request does, if ever."""
    project_id: str | None = Field(default=None, max_length=64)
    """The project of the key; by default that of this request's key. Another one needs the scope admin."""


@router.post(
    "/api_keys",
    status_code=201,
    dependencies=[needs("jobs:write"), Json],
    responses=problems(MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidBody, NotFound, QuotaExceeded),
)
def create_api_key(
    body: CreateApiKey, caller: TheCaller, session: Writing, service: TheService, response: Response
) -> schemas.NewApiKey:
    """Create a key. Its secret is in this response only and cannot be read later. A key without the scope admin creates
    keys of its own project only, without scopes that it lacks, and with no later expiry."""
    project = the_project(session, caller, body.project_id or caller.project_id)
    if body.expires_at and is_past(session, body.expires_at):
        past = FieldError(
            pointer="/expires_at", code="in_the_past", detail="choose a time in the future, or leave it out"
        )
        raise InvalidBody([past])
    scopes = body.scopes or [scope for scope in schemas.SCOPES if scope in caller.scopes and scope != "admin"]
    if not scopes:
        missing = FieldError(pointer="/scopes", code="missing", detail=f"choose from {', '.join(schemas.SCOPES)}")
        raise InvalidBody([missing])
    expires_at = body.expires_at or caller.expires_at
    key, secret = keys.delegate(session, caller, project, name=body.name, scopes=scopes, expires_at=expires_at)
    quotas.check(session, project.id, service.settings, "keys")
    response.headers["Location"] = f"/api_keys/{key.id}"
    response.headers["Cache-Control"] = "no-store"
    return schemas.NewApiKey(secret=secret, **show_key(key).model_dump())


@router.get("/api_keys", responses=problems(InvalidParameter, NotFound), dependencies=[needs("jobs:read")])
def list_api_keys(
    caller: TheCaller,
    session: Reading,
    project_id: Annotated[
        str | None, Query(max_length=64, description="A project other than the key's; needs the scope admin.")
    ] = None,
    after: Annotated[
        str | None, AfterValidator(cursor("key")), Query(description="The cursor: the `last_id` of the previous page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Keys in one page.")] = 20,
    order: Annotated[Order, Query(description="desc: newest first.")] = "desc",
) -> schemas.Page[schemas.ApiKey]:
    """List a project's keys, newest first, revoked and expired ones too."""
    project = the_project(session, caller, project_id or caller.project_id)
    part = keys.list_keys(session, project.id, after=after, limit=limit, order=order)
    return schemas.page([show_key(key) for key in part.rows], has_more=part.has_more)


@router.get("/api_keys/{key_id}", responses=problems(NotFound), dependencies=[needs("jobs:read")])
def get_api_key(key_id: KeyId, caller: TheCaller, session: Reading) -> schemas.ApiKey:
    """Get a key, without its secret."""
    return show_key(_the_key(session, caller, key_id))


@router.delete("/api_keys/{key_id}", responses=problems(NotFound, LastAdminKey), dependencies=[needs("jobs:write")])
def revoke_api_key(
    key_id: KeyId,
    caller: TheCaller,
    session: Writing,
    *,
    descendants: Annotated[
        bool,
        Query(description="Also revoke the keys created with this key, and those created with them."),
    ] = False,
) -> schemas.ApiKey:
    """Revoke a key: from the next request on it is refused, everywhere. Repeating the request is not an error. Keys
    that were made with it (`created_by`) stay valid unless `descendants` is true, as it should be for a key that has
    leaked."""
    key = _the_key(session, caller, key_id)
    return show_key(keys.revoke(session, caller, key, descendants=descendants))


@router.get("/me", responses=problems(), dependencies=[needs(None)])
def get_me(caller: TheCaller, session: Reading, service: TheService) -> schemas.Me:
    """Get the key of this request, its project, scopes and limits."""
    project, settings = session.get_one(tables.Project, caller.project_id), service.settings
    return schemas.Me(
        project=show_project(project),
        key=show_key(session.get_one(tables.ApiKey, caller.key_id)),
        scopes=[scope for scope in schemas.SCOPES if scope in caller.scopes],
        quotas=show_quotas(session, project, settings),
        rate_limit=schemas.RateLimit(requests=settings.rate_limit, seconds=rate_limits.RATE_LIMIT_SECONDS),
    )


def show_key(key: tables.ApiKey) -> schemas.ApiKey:
    """Show a key without its secret."""
    return schemas.ApiKey.model_validate(
        {
            "id": key.id,
            "object": "api_key",
            "name": key.name,
            "project_id": key.project_id,
            "prefix": keys.prefix(key),
            "scopes": key.scopes,
            "created_at": key.created_at,
            "created_by": key.created_by,
            "expires_at": key.expires_at,
            "last_used_at": key.last_used_at,
            "revoked_at": key.revoked_at,
        }
    )


def _the_key(session: Session, caller: keys.Caller, key_id: str) -> tables.ApiKey:
    key = keys.find_key(session, caller, key_id) if is_id("key", key_id) else None
    if key is None:
        raise NotFound(f"there is no API key {key_id!r} in this project")
    return key
