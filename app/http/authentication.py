"""Authentication of requests: an API key belongs to a project, and its scopes say what it may do."""

import json
import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select

from app.http.dependencies import Parameters, Service, TheService, in_turn
from app.http.problems import Forbidden, RateLimited, Unauthorized
from app.http.rate_limits import POLICY, Standing
from app.platform.database import AWAY, Database
from app.platform.settings import Settings
from app.projects import audit, keys
from app.projects.keys import Caller
from app.schemas import Scope
from app.tables import ApiKey

_bearer = HTTPBearer(auto_error=False, description="An API key: tmp_...")


def first_key(database: Database, settings: Settings) -> str | None:
    """Make the default project and its key if there is no key yet, and store it for the local command line."""
    given = settings.first_api_key.get_secret_value() if settings.first_api_key else None
    with database.writing_alone() as session:
        if session.scalar(select(ApiKey.id).limit(1)):
            return None
        project = keys.new_project(session, "default")
        _, secret = keys.new_key(session, project, name="first key", text=given)
        if settings.credentials_file:
            url = f"http://{settings.host}:{settings.port}"
            _store(settings.credentials_file, {"url": url, "api_key": secret})
    return secret


def tell_first_key(database: Database, settings: Settings) -> None:
    """Make the first key where there is none, and print it, unless it is one that somebody knows already."""
    key = first_key(database, settings)
    if key and settings.first_api_key is None:
        line = json.dumps({"api_key": key}) if settings.log_format == "json" else f"API key, shown only now: {key}"
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


async def authenticate(
    request: Request,
    service: TheService,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Authenticate the caller and count the request. Raises Unauthorized, RateLimited."""
    if credentials is None:
        raise _unauthorized("the request has no API key")
    address = request.client.host if request.client else ""
    text, failures = credentials.credentials, service.failures
    fingerprint = keys.fingerprint(text)
    suspicious = failures.seconds_to_wait(address) and not failures.was_right(fingerprint)
    async with service.suspects if suspicious else nullcontext():
        key, is_stale, standing = await run_sync(_admit, service, text, fingerprint, address)
    request.state.standing = standing
    if standing and not standing.granted:
        detail = f"this key has made {standing.limit} requests in {standing.window} s, which is its limit"
        raise RateLimited(detail, seconds=standing.reset, policies=[POLICY])
    if is_stale:
        # Where nothing can be written, reading goes on.
        with suppress(*AWAY):
            await in_turn(service, _note_use, service.database, key.id)
    audit.acting.set(key.id)
    return Caller(key.id, key.project_id, frozenset(key.scopes), key.expires_at)


TheCaller = Annotated[Caller, Depends(authenticate)]


async def _project(caller: TheCaller) -> str:
    return caller.project_id


ProjectId = Annotated[str, Depends(_project)]


@dataclass(frozen=True)
class Needs:
    """The check that a key has a scope, or is valid at all, and that nothing is asked which would be ignored."""

    scope: Scope | None

    async def __call__(self, caller: TheCaller, _: Annotated[None, Parameters]) -> None:
        """Raise Forbidden where it has not."""
        if self.scope and self.scope not in caller.scopes:
            raise Forbidden(self.scope)


def needs(scope: Scope | None) -> Any:
    """Declare the scope that a route needs: `dependencies=[needs("jobs:read")]`; None for one that any valid key may
    ask. Every route with a key has one."""
    return Depends(Needs(scope))


def _admit(service: Service, text: str, fingerprint: str, address: str) -> tuple[ApiKey, bool, Standing | None]:
    key, is_stale = _find(service, text, fingerprint, address)
    return key, is_stale, service.requests.count(key.id)


def _note_use(database: Database, key_id: str) -> None:
    with database.writing() as session:
        keys.note_use(session, key_id)


def _find(service: Service, text: str, fingerprint: str, address: str) -> tuple[ApiKey, bool]:
    failures = service.failures
    seconds = failures.seconds_to_wait(address)
    too_many = RateLimited(f"too many wrong API keys came from {address}, and this one is wrong", seconds=seconds)
    if seconds and failures.was_wrong(fingerprint):
        raise too_many
    try:
        with service.database.reading() as session:
            found = keys.find(session, text)
    except keys.BadKey as error:
        failures.note(address, fingerprint)
        raise (too_many if seconds else _unauthorized(str(error))) from None
    failures.trust(fingerprint)
    return found


def _unauthorized(reason: str) -> Unauthorized:
    detail = f"{reason}; send a valid one as 'Authorization: Bearer tmp_...'"
    return Unauthorized(detail, headers={"WWW-Authenticate": "Bearer"})


def _store(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    temporary.replace(path)
