"""Who asks: an API key leads to a project. A key is stored as the hash of a secret that nobody can read back."""

import hashlib
import json
import os
import secrets
import string
from contextlib import suppress
from hmac import compare_digest
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.database import Database, now, seconds_from_now
from app.dependencies import TheService
from app.errors import Unauthorized
from app.tables import ApiKey, Project

_ALPHABET = string.ascii_letters + string.digits
_bearer = HTTPBearer(auto_error=False, description="An API key: tmp_...")


def new_key(session: Session, project: Project) -> str:
    """Make a key to a project. This is the only time that it can be read."""
    lookup, secret = _random(8), _random(32)
    key = f"tmp_{lookup}_{secret}"
    session.add(ApiKey(project_id=project.id, lookup=lookup, sha256=_hash(key)))
    return key


def first_key(database: Database, *, url: str, credentials_file: Path | None) -> str | None:
    """Make the default project and its key if there is no key yet, and store it for the local command line."""
    with database.writing() as session:
        if session.scalar(select(ApiKey.id).limit(1)):
            return None
        project = Project(name="default")
        session.add(project)
        session.flush()
        key = new_key(session, project)
        if credentials_file:
            _store(credentials_file, {"url": url, "api_key": key})
    return key


def authenticate(
    service: TheService, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    """Find the project of the request's key. Raises Unauthorized."""
    with service.database.reading() as session:
        found = _find(session, credentials.credentials) if credentials else None
    if found is None:
        detail = "send a valid API key as 'Authorization: Bearer tmp_...'"
        raise Unauthorized(detail, headers={"WWW-Authenticate": "Bearer"})
    key, is_stale = found
    if is_stale:
        # Where nothing can be written, reading goes on.
        with suppress(OperationalError), service.database.writing() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=now()))
    return key.project_id


ProjectId = Annotated[str, Depends(authenticate)]


def _find(session: Session, key: str) -> tuple[ApiKey, bool] | None:
    """Find a key's row, and whether its last use was noted over a minute ago: noting each would cost too much."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < seconds_from_now(-60))
    lookup = key.removeprefix("tmp_")[:8]
    found = session.execute(
        select(ApiKey, stale).where(ApiKey.lookup == lookup, ApiKey.revoked_at.is_(None))
    ).one_or_none()
    if found is None:
        return None
    row, is_stale = found
    return (row, is_stale) if compare_digest(row.sha256, _hash(key)) else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _store(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    temporary.replace(path)
