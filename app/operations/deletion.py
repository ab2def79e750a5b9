"""Deletion in batches: the rows of deleted jobs and projects, and what has been kept for long enough.

Each transaction is small, so others hardly wait for it, and a round ends after ROUND_SECONDS: the next one does what is
left. `app.operations.maintenance` runs it.
"""

import logging
from collections.abc import Callable, Sequence
from threading import Event
from time import monotonic
from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session, aliased

from app.assets import assets, uploads
from app.jobs import leftovers, lifecycle, workers
from app.jobs.leases import job_prefix
from app.platform.database import Database, Deleted, seconds_from_now
from app.projects import totals
from app.storage import ObjectStore
from app.tables import (
    UNFINISHED,
    ApiKey,
    Dataset,
    Delivery,
    Job,
    Model,
    Project,
    Task,
    Total,
    TotalChange,
    Upload,
    Webhook,
    Worker,
)

log = logging.getLogger(__name__)

ROUND_SECONDS = 20.0
"""The longest round."""
PAUSE_SECONDS = 0.01
"""Between two transactions, so that others who write to SQLite get their turn."""
KEY_DAYS = 90
"""Days after which a key that was revoked, or has expired, is deleted."""
UPLOAD_DAYS = 30
"""Days after which an upload that ended without a file is deleted."""
TASK_DAYS = 30
"""Days after which an ended task is deleted."""
DELIVERY_DAYS = 30
"""Days after which an ended delivery is deleted."""
DELIVERIES_PER_WEBHOOK = 10_000
"""Ended deliveries of one webhook that are kept; the oldest are deleted first."""
_JOBS_AT_ONCE = 20
_DAY = 24 * 3600


class Round:
    """The time that one round has, and its pauses."""

    def __init__(self, database: Database, stopping: Event) -> None:
        self.database = database
        self._stopping = stopping
        self._ends_at = monotonic() + ROUND_SECONDS

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return monotonic() < self._ends_at and not self._stopping.is_set()

    def repeat(self, step: Callable[..., bool], *arguments: Any) -> None:
        """Repeat a step, in a transaction of its own each time, until it returns that nothing is left."""
        while self.goes_on:
            with self.database.writing() as session:
                if not step(session, *arguments):
                    return
            self._stopping.wait(PAUSE_SECONDS)


def delete_jobs(turn: Round) -> None:
    """Delete the rows of deleted jobs."""
    _for_each_job(turn, leftovers.deleted, leftovers.delete_some)


def forget_history(turn: Round) -> None:
    """Delete the events and curves of jobs that ended long ago."""
    _for_each_job(turn, leftovers.with_old_history, leftovers.forget_some_history)


def _for_each_job(turn: Round, find: Callable[..., Sequence[str]], step: Callable[..., bool]) -> None:
    """Repeat a step for each of the jobs that `find` gives, some at a time, until it gives none."""
    while turn.goes_on:
        with turn.database.reading() as session:
            job_ids = find(session, limit=_JOBS_AT_ONCE)
        if not job_ids:
            return
        for job_id in job_ids:
            turn.repeat(step, job_id)


def forget_keys(turn: Round) -> None:
    """Delete keys that have been invalid for long. One that has made others stays as long as they do: they are found by
    it when a key is revoked with its descendants."""
    before, made = seconds_from_now(-KEY_DAYS * _DAY), aliased(ApiKey)
    has_made = exists().where(made.created_by == ApiKey.id)
    for long_ago in (ApiKey.revoked_at < before, ApiKey.expires_at < before):
        turn.repeat(leftovers.delete_batch, ApiKey, long_ago, ~has_made)


def forget_uploads(turn: Round) -> None:
    """Delete uploads that ended long ago without a file, and whose objects were removed."""
    before = seconds_from_now(-UPLOAD_DAYS * _DAY)
    old = Upload.status.in_(("aborted", "expired")), Upload.swept_at < before
    used = (exists().where(table.upload_id == Upload.id) for table in (Dataset, Model))
    unused = [~each for each in used]
    turn.repeat(leftovers.delete_batch, Upload, *old, *unused)


def forget_tasks(turn: Round) -> None:
    """Delete tasks that ended long ago."""
    old = Task.finished_at < seconds_from_now(-TASK_DAYS * _DAY)
    turn.repeat(leftovers.delete_batch, Task, old)


def forget_deliveries(turn: Round) -> None:
    """Delete deliveries that ended, or whose webhook was disabled, long ago, and the oldest of a webhook that has too
    many."""
    before = seconds_from_now(-DELIVERY_DAYS * _DAY)
    turn.repeat(leftovers.delete_batch, Delivery, Delivery.finished_at < before)
    with turn.database.reading() as session:
        rows = session.execute(select(Webhook.id, Webhook.disabled_at < before)).all()
    for webhook_id, is_disabled in rows:
        if is_disabled:
            mine = Delivery.webhook_id == webhook_id
            turn.repeat(leftovers.delete_batch, Delivery, mine)
        else:
            turn.repeat(_forget_oldest, webhook_id)


def forget_workers(turn: Round) -> None:
    """Delete the rows of workers that vanished long ago."""
    gone = Worker.alive_until < seconds_from_now(-workers.KEPT_DAYS * _DAY)
    turn.repeat(leftovers.delete_batch, Worker, gone)


def delete_projects(turn: Round, store: ObjectStore) -> None:
    """Delete what deleted projects have, and them last. What cannot be deleted yet is left to the next round. Raises
    StorageUnavailable."""
    with turn.database.reading() as session:
        project_ids = session.scalars(select(Project.id).where(Project.deleted_at.is_not(None))).all()
    for project_id in project_ids:
        _delete_jobs_of(turn, store, project_id)
        _delete_files_of(turn, project_id)
        _delete_rest_of(turn, project_id)


def fold_totals(turn: Round) -> None:
    """Add what transactions have counted to the totals."""
    while turn.goes_on:
        with turn.database.writing_alone() as session:
            if not totals.fold(session):
                return


def _forget_oldest(session: Session, webhook_id: str) -> bool:
    mine = Delivery.webhook_id == webhook_id, Delivery.status.in_(("succeeded", "failed"))
    newest = select(Delivery.id).where(Delivery.webhook_id == webhook_id).order_by(Delivery.id.desc())
    first = session.scalar(newest.offset(DELIVERIES_PER_WEBHOOK).limit(1))
    return first is not None and leftovers.delete_batch(session, Delivery, *mine, Delivery.id <= first)


def _delete_jobs_of(turn: Round, store: ObjectStore, project_id: str) -> None:
    of_project = Job.project_id == project_id, Job.parent_id.is_(None), Job.deleted_at.is_(None)
    after = ""
    while turn.goes_on:
        with turn.database.reading() as session:
            found = select(Job.id, Job.status).where(*of_project, Job.id > after).order_by(Job.id).limit(_JOBS_AT_ONCE)
            jobs = session.execute(found).all()
        for job_id, status in jobs:
            after = job_id
            with turn.database.writing() as session:
                if status in UNFINISHED:
                    _try(lifecycle.ask, session, job_id, "cancel")
                    continue
                removed: Sequence[str] = _try(lifecycle.remove, session, job_id) or ()
            for each in removed:
                store.delete(job_prefix(each))
        if not jobs:
            return


def _delete_files_of(turn: Round, project_id: str) -> None:
    for table in (Dataset, Model):
        with turn.database.reading() as session:
            files = session.scalars(select(table.id).where(table.project_id == project_id)).all()
        for file_id in files:
            with turn.database.writing() as session:
                file = session.get(table, file_id)
                if file is not None:
                    _try(assets.remove, session, file)
    with turn.database.reading() as session:
        left = Upload.project_id == project_id, Upload.status.in_(totals.STORED)
        upload_ids = session.scalars(select(Upload.id).where(*left).limit(1000)).all()
    for upload_id in upload_ids:
        with turn.database.writing() as session:
            used = (select(table.id).where(table.upload_id == upload_id) for table in (Dataset, Model))
            if not any(session.scalar(each.limit(1)) for each in used):
                _try(uploads.abort, session, upload_id)
                uploads.discard(session, upload_id)


def _delete_rest_of(turn: Round, project_id: str) -> None:
    """Delete the rows that are left, once jobs and objects are gone."""
    swept = Upload.project_id == project_id, Upload.swept_at.is_not(None), Upload.status.in_(("aborted", "expired"))
    turn.repeat(leftovers.delete_batch, Upload, *swept)
    with turn.database.reading() as session:
        holding = Job, Dataset, Model, Upload
        left = (select(table.id).where(table.project_id == project_id).limit(1) for table in holding)
        if any(session.scalar(each) for each in left):
            return
        webhooks = session.scalars(select(Webhook.id).where(Webhook.project_id == project_id)).all()
    for webhook_id in webhooks:
        mine = Delivery.webhook_id == webhook_id
        turn.repeat(leftovers.delete_batch, Delivery, mine)
    for table in (Webhook, Task, ApiKey, Total, TotalChange):
        of_project = table.project_id == project_id
        turn.repeat(leftovers.delete_batch, table, of_project)
    if not turn.goes_on:
        return
    with turn.database.writing() as session:
        session.execute(delete(Project).where(Project.id == project_id, Project.deleted_at.is_not(None)))
        log.info("project %s is deleted", project_id)


def _try(act: Callable[..., Any], session: Session, *arguments: Any) -> Any:
    """Do something that may not be possible yet: another job or file may need the row."""
    with session.begin_nested() as savepoint:
        try:
            return act(session, *arguments)
        except (assets.InUse, lifecycle.NotAllowed, uploads.Ended, Deleted):
            savepoint.rollback()
    return None
