"""Read-only queries on jobs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, exists, func, literal, select
from sqlalchemy.orm import Session

from app.jobs.labels import digest
from app.platform.paging import Order, Part, Place, list_fitting, list_rows
from app.tables import POSTED, Attempt, Event, Job, JobLabel, Metric

_LEADING = ("name", "base_model", "dataset", "status", "kind")


def find_job(session: Session, project_id: str, job_id: str) -> Job | None:
    """Find a job of this project; None for the job of another project."""
    return session.scalars(
        select(Job).where(Job.id == job_id, Job.project_id == project_id, Job.deleted_at.is_(None))
    ).one_or_none()


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
    wanted = {column: value for column, value in matching.items() if value is not None}
    page: dict[str, Any] = {"after": after, "limit": limit, "order": order}
    if labels:
        digests = [digest(*pair) for pair in labels.items()]
        place = Place((JobLabel.project_id, JobLabel.digest), (project_id, digests[0]))
        others = [
            exists().where(JobLabel.project_id == project_id, JobLabel.digest == each, JobLabel.job_id == Job.id)
            for each in digests[1:]
        ]
        fits = [*POSTED, *others, *(getattr(Job, column) == value for column, value in wanted.items())]
        return list_fitting(session, Job, Job.id, JobLabel.job_id, place, fits, **page)
    # The filter that leaves the fewest jobs leads, as far as that can be foretold.
    leading = sorted(wanted, key=_LEADING.index)[:1]
    columns = [Job.project_id, *(getattr(Job, column) for column in leading)]
    place = Place(columns, [project_id, *(wanted[column] for column in leading)], POSTED)
    fits = [getattr(Job, column) == value for column, value in wanted.items() if column not in leading]
    if fits:
        return list_fitting(session, Job, Job.id, Job.id, place, fits, **page)
    return list_rows(session, Job, Job.id, place, **page)


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> Part[Event]:
    """List the events of a job after number `after`."""
    place = Place([Event.job_id], [job_id])
    return list_rows(session, Event, Event.seq, place, after=after, limit=limit, order="asc")


def list_attempts(session: Session, job_id: str, *, after: int, limit: int) -> Part[Attempt]:
    """List a job's attempts by number."""
    place = Place([Attempt.job_id], [job_id])
    return list_rows(session, Attempt, Attempt.attempt, place, after=after, limit=limit, order="asc")


def all_attempts(session: Session, job_id: str) -> Sequence[Attempt]:
    """Read all of a job's attempts, which are few, by number."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt)).all()


def training_curve(session: Session, job: Job, *, after_step: int, max_points: int) -> Sequence[Metric]:
    """Read the curve up to the step that the job has reached, thinned out evenly to at most `max_points`; the last step
    always stays.

    The job has reached the last step of its newest attempt that has made one, or the step that this attempt resumed
    from. Earlier steps come from earlier attempts.
    """
    end = _reached(session, job)
    if end is None:
        return []
    within = Metric.job_id == job.id, Metric.step > after_step, Metric.step <= end
    # Steps alone are read from the index.
    steps = session.scalars(
        select(Metric.step).where(*within).distinct().order_by(Metric.step).limit(max_points + 1)
    ).all()
    if len(steps) > max_points:
        steps = _thinned(session, job.id, after_step, steps[0], end, max_points=max_points)
    # Joined in one statement, a planner may read the whole curve. A thousand numbers are read faster as text than as
    # parameters.
    those = Metric.step.in_(bindparam("steps", steps, expanding=True, literal_execute=True))
    points = select(Metric).where(Metric.job_id == job.id, those)
    rows = session.scalars(points.order_by(Metric.step, Metric.attempt)).all()
    return list({row.step: row for row in rows}.values())


def _reached(session: Session, job: Job) -> int | None:
    """Return the step that the job has reached; None where it has made no step."""
    # One look into the index of attempts and steps: a maximum for each attempt would be looked for by step.
    newest_first = Metric.attempt.desc(), Metric.step.desc()
    made = session.execute(
        select(Metric.attempt, Metric.step).where(Metric.job_id == job.id).order_by(*newest_first).limit(1)
    ).first()
    resumed = session.execute(
        select(Attempt.attempt, Attempt.resumed_step)
        .where(Attempt.job_id == job.id, Attempt.resumed_step.is_not(None))
        .order_by(Attempt.attempt.desc())
        .limit(1)
    ).first()
    latest = max((each for each in (made, resumed) if each), key=lambda each: each[0], default=None)
    return None if latest is None else latest[1]


def _thinned(session: Session, job_id: str, after_step: int, first: int, end: int, *, max_points: int) -> Sequence[int]:
    """List at most `max_points` of the steps of a curve from its first step to `end`, evenly and with the last one."""
    # From the last step back, each time to the next one that is far enough away: one look into the index for each
    # point, however many steps lie between. The range after after_step holds at most max_points of them.
    within = Metric.job_id == job_id, Metric.step > after_step, Metric.step <= end
    last = session.scalars(select(func.max(Metric.step)).where(*within)).one()
    stride = -(-(last - first + 1) // max_points)
    kept = select(literal(last).label("step")).cte(recursive=True)
    # Not within the end again: of two upper bounds SQLite might look up the wrong one.
    before = select(func.max(Metric.step)).where(
        Metric.job_id == job_id, Metric.step > after_step, Metric.step <= kept.c.step - stride
    )
    kept = kept.union_all(select(before.correlate(kept).scalar_subquery()).where(kept.c.step.is_not(None)))
    return session.scalars(select(kept.c.step).where(kept.c.step.is_not(None))).all()


def versions(session: Session, job_ids: Iterable[str]) -> dict[str, int]:
    """Read the version of each of these jobs."""
    rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(job_ids)))
    return {row.id: row.version for row in rows}
