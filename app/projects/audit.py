"""The audit trail: who did what, one row per act, in the transaction of the act itself.

The authentication of a request sets `acting`, so that functions need no parameter for the caller. What the service does
on its own has no actor. The database refuses to change or delete a row.
"""

from contextvars import ContextVar
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.tables import Audit

Act = Literal[
    "project.create",
    "project.change",
    "project.delete",
    "key.create",
    "key.revoke",
    "job.create",
    "job.pause",
    "job.resume",
    "job.stop",
    "job.cancel",
    "job.delete",
    "upload.create",
    "upload.complete",
    "upload.abort",
    "dataset.create",
    "dataset.delete",
    "model.create",
    "model.delete",
    "webhook.create",
    "webhook.change",
    "webhook.rotate_secret",
    "webhook.test",
    "webhook.redeliver",
    "webhook.delete",
]
acting: ContextVar[str | None] = ContextVar("acting", default=None)
"""The id of the API key whose request is being answered."""


def actor() -> str | None:
    """The key on whose behalf this request acts; None for the service itself."""
    return acting.get()


def record(session: Session, project_id: str, action: Act, subject_id: str, **details: Any) -> None:
    """Write an act into the audit trail, with the transaction of the caller.

    details: what a reader needs to know of the act beyond its subject, as JSON; never a secret.
    """
    session.add(Audit(project_id=project_id, actor=actor(), action=action, subject_id=subject_id, details=details))
