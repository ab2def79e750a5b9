"""What readers ask of the rows. Nothing here changes one: that is `app.jobs.lifecycle`, which stays short without
this."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, and_, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.platform.database import Timestamp, now
from app.tables import Attempt, Checkpoint, Delivery, Event, Job, Metric, Upload, Webhook

Row = TypeVar("Row")
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Part(Generic[Row]):
    """Some rows of a list, and whether more follow."""

    rows: Sequence[Row]
    has_more: bool


def find_job(session: Session, project_id: str, job_id: str) -> Job | None:
    """Find a job of this project; another project's job is as good as none."""
    return session.scalars(select(Job).where(Job.id == job_id, Job.project_id == project_id)).one_or_none()


def list_jobs(
    session: Session,
    project_id: str,
    *,
    matching: Mapping[str, str | None],
    labels: Mapping[str, str],
    after: str | None,
    limit: int,
    order: Order,
) -> Part[Job]:
    """List a project's jobs by age, without shards; `matching` compares columns, `labels` the user's metadata."""
    where: list[ColumnElement[bool]] = [Job.project_id == project_id, Job.parent_id.is_(None)]
    where += [getattr(Job, column) == value for column, value in matching.items() if value is not None]
    where += [Job.labels[key].as_string() == value for key, value in labels.items()]
    return list_rows(session, Job, Job.id, where, after=after, limit=limit, order=order)


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> Part[Event]:
    """List a job's history from a place on."""
    return list_rows(session, Event, Event.seq, [Event.job_id == job_id], after=after, limit=limit, order="asc")


def list_checkpoints(session: Session, job_id: str, *, after: str | None, limit: int) -> Part[Checkpoint]:
    """List a job's checkpoints by age."""
    where = [Checkpoint.job_id == job_id]
    return list_rows(session, Checkpoint, Checkpoint.id, where, after=after, limit=limit, order="asc")


def list_attempts(session: Session, job_id: str, *, after: int, limit: int) -> Part[Attempt]:
    """List a job's attempts by number."""
    of_job = [Attempt.job_id == job_id]
    return list_rows(session, Attempt, Attempt.attempt, of_job, after=after, limit=limit, order="asc")


def all_attempts(session: Session, job_id: str) -> Sequence[Attempt]:
    """Read all of a job's attempts, which are few, by number."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt)).all()


def find_checkpoint(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """Find a checkpoint of this project's jobs."""
    owned = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(Job.project_id == project_id)
    return session.scalars(owned.where(Checkpoint.id == checkpoint_id)).one_or_none()


def find_upload(session: Session, project_id: str, upload_id: str) -> Upload | None:
    """Find an upload of this project."""
    return session.scalars(select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)).one_or_none()


def list_uploads(
    session: Session,
    project_id: str,
    *,
    matching: Mapping[str, str | None],
    after: str | None,
    limit: int,
    order: Order,
) -> Part[Upload]:
    """List a project's uploads by age; `matching` compares columns."""
    where: list[ColumnElement[bool]] = [Upload.project_id == project_id]
    where += [getattr(Upload, column) == value for column, value in matching.items() if value is not None]
    return list_rows(session, Upload, Upload.id, where, after=after, limit=limit, order=order)


def training_curve(session: Session, job: Job, *, after_step: int, max_points: int) -> Sequence[Metric]:
    """Read the steps up to where the job is, thinned out evenly; the last step always stays.

    That is the last step of the newest attempt that has made one, or the step that it went on from. The steps before
    are those of earlier attempts.
    """
    reached = func.coalesce(
        select(func.max(Metric.step))
        .where(Metric.job_id == Attempt.job_id, Metric.attempt == Attempt.attempt)
        .scalar_subquery(),
        Attempt.resumed_step,
    )
    of_those_that_say = Attempt.job_id == job.id, reached.is_not(None)
    end = session.scalar(select(reached).where(*of_those_that_say).order_by(Attempt.attempt.desc()).limit(1))
    if end is None:
        return []
    newest = func.row_number().over(partition_by=Metric.step, order_by=Metric.attempt.desc())
    of_job = Metric.job_id == job.id, Metric.step > after_step, Metric.step <= end
    numbered = select(Metric.attempt, Metric.step, newest.label("place")).where(*of_job).subquery()
    steps = select(func.count(), func.max(numbered.c.step)).where(numbered.c.place == 1)
    count, last = session.execute(steps).one()
    stride = -(-count // max_points) or 1
    same = and_(Metric.attempt == numbered.c.attempt, Metric.step == numbered.c.step)
    # From the end, so that the last step stays and no more than max_points are left.
    kept = numbered.c.place == 1, (last - Metric.step) % stride == 0
    curve = select(Metric).join(numbered, same).where(Metric.job_id == job.id, *kept)
    return session.scalars(curve.order_by(Metric.step)).all()


def is_past(session: Session, moment: datetime) -> bool:
    """Whether a moment has gone by, by the database's clock."""
    return bool(session.scalar(select(literal(moment, Timestamp()) <= now())))


def list_webhooks(session: Session, project_id: str, *, after: str | None, limit: int) -> Part[Webhook]:
    """List a project's webhooks by age."""
    where = [Webhook.project_id == project_id]
    return list_rows(session, Webhook, Webhook.id, where, after=after, limit=limit, order="asc")


def find_webhook(session: Session, project_id: str, webhook_id: str) -> Webhook | None:
    """Find a webhook of this project."""
    owned = Webhook.id == webhook_id, Webhook.project_id == project_id
    return session.scalars(select(Webhook).where(*owned)).one_or_none()


def list_deliveries(
    session: Session, webhook_id: str, *, status: str | None, after: str | None, limit: int
) -> Part[Delivery]:
    """List a webhook's deliveries, newest first."""
    where = [Delivery.webhook_id == webhook_id]
    if status:
        where.append(Delivery.status == status)
    return list_rows(session, Delivery, Delivery.id, where, after=after, limit=limit, order="desc")


def find_delivery(session: Session, webhook_id: str, delivery_id: str) -> Delivery | None:
    """Find a delivery of this webhook."""
    owned = Delivery.id == delivery_id, Delivery.webhook_id == webhook_id
    return session.scalars(select(Delivery).where(*owned)).one_or_none()


def versions(session: Session, job_ids: Iterable[str]) -> dict[str, int]:
    """Read how often each of these jobs has changed."""
    rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(job_ids)))
    return {row.id: row.version for row in rows}


def list_rows(
    session: Session,
    table: type[Row],
    cursor: InstrumentedAttribute[str] | InstrumentedAttribute[int],
    where: Sequence[ColumnElement[bool]],
    *,
    after: str | int | None,
    limit: int,
    order: Order,
) -> Part[Row]:
    """List rows by the column that is the cursor, from behind `after` on."""
    query = select(table).where(*where).order_by(cursor.asc() if order == "asc" else cursor.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(cursor > after if order == "asc" else cursor < after)
    rows = session.scalars(query).all()
    return Part(rows[:limit], has_more=len(rows) > limit)
