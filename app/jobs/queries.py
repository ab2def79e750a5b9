"""Read-only queries on jobs."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from app.platform.paging import Order, Part, list_rows
from app.tables import Attempt, Event, Job, Metric


def find_job(session: Session, project_id: str, job_id: str) -> Job | None:
    """Find a job of this project; None for the job of another project."""
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
    """List a project's jobs by age, without shards. `matching` compares columns, `labels` the user's metadata."""
    where: list[ColumnElement[bool]] = [Job.project_id == project_id, Job.parent_id.is_(None)]
    where += [getattr(Job, column) == value for column, value in matching.items() if value is not None]
    where += [Job.labels[key].as_string() == value for key, value in labels.items()]
    return list_rows(session, Job, Job.id, where, after=after, limit=limit, order=order)


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> Part[Event]:
    """List the events of a job after number `after`."""
    return list_rows(session, Event, Event.seq, [Event.job_id == job_id], after=after, limit=limit, order="asc")


def list_attempts(session: Session, job_id: str, *, after: int, limit: int) -> Part[Attempt]:
    """List a job's attempts by number."""
    of_job = [Attempt.job_id == job_id]
    return list_rows(session, Attempt, Attempt.attempt, of_job, after=after, limit=limit, order="asc")


def all_attempts(session: Session, job_id: str) -> Sequence[Attempt]:
    """Read all of a job's attempts, which are few, by number."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt)).all()


def training_curve(session: Session, job: Job, *, after_step: int, max_points: int) -> Sequence[Metric]:
    """Read the curve up to the step that the job has reached, thinned out evenly to at most `max_points`; the last step
    always stays.

    The job has reached the last step of its newest attempt that has made one, or the step that this attempt resumed
    from. Earlier steps come from earlier attempts.
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
    # Counted from the end, so that the last step stays and at most max_points are left.
    kept = numbered.c.place == 1, (last - Metric.step) % stride == 0
    curve = select(Metric).join(numbered, same).where(Metric.job_id == job.id, *kept)
    return session.scalars(curve.order_by(Metric.step)).all()


def versions(session: Session, job_ids: Iterable[str]) -> dict[str, int]:
    """Read the version of each of these jobs."""
    rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(job_ids)))
    return {row.id: row.version for row in rows}
