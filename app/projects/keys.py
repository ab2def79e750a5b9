"""Projects and API keys: make, find, list, revoke. No HTTP in it.

A key is `tmp_<8 characters that find its row>_<32 secret characters>_<6 of a checksum>`. The checksum tells a typing
error from a key that is not known; a key that an operator has chosen (TEMPER_FIRST_API_KEY) may have none. What is
stored is a hash of the whole.

Who may do what with keys: a key with the scope admin manages the keys of all projects. Any other key manages those of
its own project, and never beyond itself: it can neither make nor revoke a key with a scope that it lacks, and what it
makes ends no later than it does. So a key that leaks cannot grow, and cannot lock its betters out. What it has made
stays valid when it is revoked, unless its descendants are to go with it.
"""

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from app.platform.database import lock_out_others, lock_row, now, seconds_from_now
from app.platform.paging import Order, Part, Place, list_rows
from app.projects import audit
from app.projects.ids import next_id, next_project_id
from app.schemas import SCOPES, Scope
from app.tables import ApiKey, Project

_ALPHABET = string.digits + string.ascii_letters
_KEY = re.compile(r"(tmp_([0-9A-Za-z]{8})_[0-9A-Za-z]{32})(?:_([0-9A-Za-z]{6}))?")
# Made once, for every request begins with it.
_BY_LOOKUP = select(
    ApiKey,
    or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < seconds_from_now(-60)).label("is_stale"),
    func.coalesce(ApiKey.expires_at <= now(), False).label("is_expired"),
).where(ApiKey.lookup == bindparam("lookup"))


class BadKey(Exception):
    """The key is not valid; the message says why."""


class BeyondOwn(Exception):
    """A request would create or revoke a key with more rights than its own key; the message says which."""


class LastAdminKey(Exception):
    """The key is the last one that can manage the instance."""


@dataclass(frozen=True)
class Caller:
    """The sender of a request: a valid key, with its project and scopes."""

    key_id: str
    project_id: str
    scopes: frozenset[Scope]
    expires_at: datetime | None

    @property
    def is_admin(self) -> bool:
        """Whether it manages the instance."""
        return "admin" in self.scopes


def new_key(
    session: Session,
    project: Project,
    *,
    name: str = "",
    scopes: Sequence[Scope] = SCOPES,
    expires_at: datetime | None = None,
    created_by: str | None = None,
    text: str | None = None,
) -> tuple[ApiKey, str]:
    """Make a key to a project, a random one or the one given. This is the only time that it can be read."""
    if text is None:
        text = f"tmp_{_random(8)}_{_random(32)}"
        text = f"{text}_{_checksum(text)}"
    key = ApiKey(
        id=next_id(session, project.id, "key"),
        project_id=project.id,
        lookup=text[4:12],
        sha256=fingerprint(text),
        name=name,
        scopes=[scope for scope in SCOPES if scope in scopes],
        expires_at=expires_at,
        created_by=created_by,
    )
    session.add(key)
    session.flush()
    audit.record(session, project.id, "key.create", key.id, name=name, scopes=key.scopes)
    return key, text


def delegate(
    session: Session,
    caller: Caller,
    project: Project,
    *,
    name: str,
    scopes: Sequence[Scope],
    expires_at: datetime | None,
) -> tuple[ApiKey, str]:
    """Make a key on behalf of another. Raises BeyondOwn."""
    # The lock serialises this with a request that revokes the key and its descendants.
    own = select(ApiKey.revoked_at).where(ApiKey.id == caller.key_id).with_for_update(read=True)
    if session.scalars(own).one():
        raise BeyondOwn("this key was revoked just now")
    if not caller.is_admin:
        _check_within(caller, scopes, verb="make")
        if caller.expires_at and (expires_at is None or expires_at > caller.expires_at):
            raise BeyondOwn(f"a key cannot make one that outlives it: set expires_at to {caller.expires_at} or before")
    return new_key(session, project, name=name, scopes=scopes, expires_at=expires_at, created_by=caller.key_id)


def revoke(session: Session, caller: Caller, key: ApiKey, *, descendants: bool = False) -> ApiKey:
    """Refuse a key from now on, and with `descendants` all that were made with it, and with those; twice is no error.
    Raises BeyondOwn, LastAdminKey."""
    doomed = [lock_row(session, ApiKey, key.id)]
    if descendants:
        doomed += _made_with(session, key)
    for each in () if caller.is_admin else doomed:
        _check_within(caller, each.scopes, verb="revoke")
    # Of two admin keys that revoke each other at once, one has to stay.
    session.scalars(select(Project.id).order_by(Project.id).limit(1).with_for_update()).first()
    ids = [each.id for each in doomed]
    ends = [each for each in doomed if each.revoked_at is None]
    if any("admin" in each.scopes for each in ends) and not _has_other_admin(session, ids):
        raise LastAdminKey
    revoked = update(ApiKey).where(ApiKey.id.in_(ids), ApiKey.revoked_at.is_(None))
    session.execute(revoked.values(revoked_at=now(), revoked_by=audit.actor()))
    for each in ends:
        audit.record(session, each.project_id, "key.revoke", each.id, name=each.name)
    session.refresh(key)
    return key


def _made_with(session: Session, key: ApiKey) -> list[ApiKey]:
    """Find the keys that were made with a key, with those, and so on. No key is older than the one that made it."""
    found: list[ApiKey] = []
    near: Sequence[ApiKey] = [key]
    while near:
        made = select(ApiKey).where(ApiKey.created_by.in_([each.id for each in near])).order_by(ApiKey.id)
        near = session.scalars(made.with_for_update(), execution_options={"populate_existing": True}).all()
        found += near
    return found


def find(session: Session, text: str) -> tuple[ApiKey, bool]:
    """Find the valid key with this text, and whether its last use was recorded over a minute ago: recording every use
    would cost too much. Raises BadKey."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise BadKey("what was sent is no API key")
    if match[3] and match[3] != _checksum(match[1]):
        raise BadKey("the API key has a typing error, for its checksum does not fit; copy it again")
    row = session.execute(_BY_LOOKUP, {"lookup": match[2]}).one_or_none()
    if row is None or not compare_digest(row[0].sha256, fingerprint(text)):
        raise BadKey("this service has no such API key")
    key, is_stale, is_expired = row
    if key.revoked_at:
        raise BadKey(f"the API key {prefix(key)} was revoked")
    if is_expired:
        raise BadKey(f"the API key {prefix(key)} expired at {key.expires_at}")
    return key, is_stale


def note_use(session: Session, key_id: str) -> None:
    """Record that a key was used now."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now()))


def find_key(session: Session, caller: Caller, key_id: str) -> ApiKey | None:
    """Find a key that the caller manages; another project's is as good as none, but to an admin."""
    mine = () if caller.is_admin else (ApiKey.project_id == caller.project_id,)
    return session.scalars(select(ApiKey).where(ApiKey.id == key_id, *mine)).one_or_none()


def list_keys(session: Session, project_id: str, *, after: str | None, limit: int, order: Order) -> Part[ApiKey]:
    """List a project's keys by age, revoked ones too."""
    place = Place([ApiKey.project_id], [project_id])
    return list_rows(session, ApiKey, ApiKey.id, place, after=after, limit=limit, order=order)


def list_projects(session: Session, *, after: str | None, limit: int, order: Order) -> Part[Project]:
    """List all projects by age."""
    return list_rows(
        session,
        Project,
        Project.id,
        Place([], [], [Project.deleted_at.is_(None)]),
        after=after,
        limit=limit,
        order=order,
    )


def new_project(session: Session, name: str) -> Project:
    """Make a project, which has no key yet."""
    lock_out_others(session)
    project = Project(id=next_project_id(session), name=name, created_by=audit.actor())
    session.add(project)
    session.flush()
    audit.record(session, project.id, "project.create", project.id, name=name)
    return project


def find_project(session: Session, caller: Caller, project_id: str) -> Project | None:
    """Find a project that the caller manages keys of: their own; to an admin, any."""
    if not caller.is_admin and project_id != caller.project_id:
        return None
    return session.scalars(select(Project).where(Project.id == project_id, Project.deleted_at.is_(None))).one_or_none()


def prefix(key: ApiKey) -> str:
    """Name a key without giving it away."""
    return f"tmp_{key.lookup}"


def fingerprint(text: str) -> str:
    """Hash a key as it is stored."""
    return hashlib.sha256(text.encode()).hexdigest()


def _check_within(caller: Caller, scopes: Sequence[str], *, verb: str) -> None:
    beyond = [scope for scope in scopes if scope not in caller.scopes]
    if beyond:
        lacking = " and ".join(beyond)
        raise BeyondOwn(f"this key lacks {lacking}, so it cannot {verb} a key with it; use a key with the scope admin")


def _has_other_admin(session: Session, but: Sequence[str]) -> bool:
    others = select(ApiKey.scopes).where(
        ApiKey.id.not_in(but),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()),
    )
    return any("admin" in scopes for scopes in session.scalars(others))


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
