"""The deletion of a project: what depends on it, and the mark that hides it from all queries.

`app.operations.deletion` deletes what it has in batches, and the project last.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from app.platform.database import lock_row, now
from app.projects import audit
from app.projects.keys import Caller
from app.tables import POSTED, UNFINISHED, ApiKey, Dataset, Job, Model, Project, Upload, Webhook

_COUNTED = 10_000
"""Rows of one kind that are counted; of more, the answer gives this number and "at least"."""


class OwnProject(Exception):
    """The project is that of the key of the request."""


class NotEmpty(Exception):
    """The project has something, and its deletion was not confirmed."""

    def __init__(self, contents: Mapping[str, int]) -> None:
        super().__init__(contents)
        self.contents = contents

    @property
    def listed(self) -> str:
        """What it has, in words."""
        found = [
            f"{'at least ' if count > _COUNTED else ''}{min(count, _COUNTED)} {word}"
            for word, count in self.contents.items()
            if count
        ]
        return ", ".join(found)


def contents(session: Session, project_id: str) -> Mapping[str, int]:
    """Count what a project has; each up to a limit."""
    valid = ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now())
    unfinished = Job.finished_at.is_(None), Job.status.in_(UNFINISHED)
    return {
        "unfinished jobs": _count(session, Job, project_id, *POSTED, *unfinished),
        "ended jobs": _count(session, Job, project_id, *POSTED, Job.finished_at.is_not(None)),
        "data sets": _count(session, Dataset, project_id),
        "models": _count(session, Model, project_id),
        "uploads": _count(session, Upload, project_id, Upload.ended_at.is_(None)),
        "webhooks": _count(session, Webhook, project_id),
        "valid keys": _count(session, ApiKey, project_id, *valid),
    }


def remove(session: Session, caller: Caller, project: Project, *, confirmed: bool) -> None:
    """Delete a project with all that it has: its keys are refused and nothing finds it from now on. Raises OwnProject,
    NotEmpty, Deleted."""
    if project.id == caller.project_id:
        raise OwnProject
    lock_row(session, Project, project.id)
    found = contents(session, project.id)
    if any(found.values()) and not confirmed:
        raise NotEmpty(found)
    session.execute(update(Project).where(Project.id == project.id).values(deleted_at=now()))
    keys = update(ApiKey).where(ApiKey.project_id == project.id, ApiKey.revoked_at.is_(None))
    session.execute(keys.values(revoked_at=now(), revoked_by=audit.actor()))
    audit.record(session, project.id, "project.delete", project.id, name=project.name, **_as_details(found))


def _count(session: Session, table: Any, project_id: str, *where: ColumnElement[bool]) -> int:
    some = select(table.id).where(table.project_id == project_id, *where).limit(_COUNTED + 1).subquery()
    return session.scalars(select(func.count()).select_from(some)).one()


def _as_details(found: Mapping[str, int]) -> dict[str, int]:
    return {word.replace(" ", "_"): count for word, count in found.items()}
