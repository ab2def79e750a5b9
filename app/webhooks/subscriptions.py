"""Webhooks: the addresses that a project has events sent to. `app.webhooks.deliveries` has what is sent there.

The caller opens the transaction and commits it.
"""

import base64
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.platform.database import lock_row, now, seconds_from_now
from app.platform.paging import Part, Place, list_rows
from app.projects import audit
from app.projects.ids import next_id
from app.tables import Webhook

MAX_WEBHOOKS = 20
"""Webhooks that one project may have."""
ROTATION_SECONDS = 24 * 3600
"""Seconds after a rotation in which the previous secret also signs."""


class AddressTaken(Exception):
    """The project has a webhook with this address, the argument."""


class TooMany(Exception):
    """The project has the largest allowed number of webhooks; the argument is that number."""


class Disabled(Exception):
    """The webhook is disabled, so nothing is sent to it; the argument is its id."""


class NamedIsDisabled(Exception):
    """The webhook with the address that a job names is disabled."""


def create(
    session: Session, project_id: str, *, url: str, events: Sequence[str], description: str, limit: int
) -> Webhook:
    """Create a webhook with a new secret. Raises AddressTaken, and TooMany where the project would have more than
    `limit`: then the caller must roll back."""
    webhook = Webhook(
        id=next_id(session, project_id, "whk"),
        project_id=project_id,
        url=url,
        events=list(events),
        description=description,
        secret=_new_secret(),
        created_by=audit.actor(),
    )
    _save(session, webhook)
    audit.record(session, project_id, "webhook.create", webhook.id, url=url)
    count = select(func.count()).select_from(Webhook).where(Webhook.project_id == project_id)
    if session.scalars(count).one() > limit:
        raise TooMany(limit)
    return webhook


def change(session: Session, webhook: Webhook, changes: dict[str, Any]) -> None:
    """Change url, events, description or disabled. Raises AddressTaken, Deleted."""
    lock_row(session, Webhook, webhook.id)
    audit.record(session, webhook.project_id, "webhook.change", webhook.id, **changes)
    disabled = changes.pop("disabled", None)
    if disabled is not None and disabled != (webhook.disabled_at is not None):
        webhook.disabled_at = now() if disabled else None
        webhook.disabled_reason = "requested" if disabled else None
    for name, value in changes.items():
        setattr(webhook, name, value)
    webhook.updated_at, webhook.updated_by = now(), audit.actor()
    _save(session, webhook)


def remove(session: Session, webhook: Webhook) -> None:
    """Delete a webhook with its deliveries, sent or not. Raises Deleted."""
    session.delete(lock_row(session, Webhook, webhook.id))
    audit.record(session, webhook.project_id, "webhook.delete", webhook.id, url=webhook.url)


def rotate_secret(session: Session, webhook: Webhook) -> None:
    """Give a webhook a new secret. The previous one signs as well for ROTATION_SECONDS. Raises Deleted."""
    lock_row(session, Webhook, webhook.id)
    audit.record(session, webhook.project_id, "webhook.rotate_secret", webhook.id)
    webhook.previous_secret, webhook.secret = webhook.secret, _new_secret()
    webhook.previous_until = seconds_from_now(ROTATION_SECONDS)
    webhook.updated_at, webhook.updated_by = now(), audit.actor()
    _save(session, webhook)


def ensure(session: Session, project_id: str, url: str, *, limit: int) -> Webhook | None:
    """Create a webhook for the address that a job names, unless the project has one; return it where it was created.
    Raises TooMany."""
    if _named(session, project_id, url):
        return None
    try:
        return create(session, project_id, url=url, events=(), description="named by a job", limit=limit)
    except AddressTaken:
        # Another job has created it at the same moment.
        return None


def check_named(session: Session, project_id: str, url: str) -> None:
    """Check that the webhook for the address that a job names is not disabled. Raises NamedIsDisabled."""
    webhook = _named(session, project_id, url)
    if webhook and webhook.disabled_at is not None:
        raise NamedIsDisabled


def list_webhooks(session: Session, project_id: str, *, after: str | None, limit: int) -> Part[Webhook]:
    """List a project's webhooks by age."""
    place = Place([Webhook.project_id], [project_id])
    return list_rows(session, Webhook, Webhook.id, place, after=after, limit=limit, order="asc")


def find_webhook(session: Session, project_id: str, webhook_id: str) -> Webhook | None:
    """Find a webhook of this project."""
    owned = Webhook.id == webhook_id, Webhook.project_id == project_id
    return session.scalars(select(Webhook).where(*owned)).one_or_none()


def _named(session: Session, project_id: str, url: str) -> Webhook | None:
    return session.scalars(select(Webhook).where(Webhook.project_id == project_id, Webhook.url == url)).one_or_none()


def check_enabled(webhook: Webhook) -> None:
    """Check that a webhook is not disabled. Raises Disabled."""
    if webhook.disabled_at is not None:
        raise Disabled(webhook.id)


def _save(session: Session, webhook: Webhook) -> None:
    url = webhook.url  # a failed write takes it back
    try:
        with session.begin_nested():
            session.add(webhook)
    except IntegrityError as error:
        raise AddressTaken(url) from error
    session.refresh(webhook)


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
