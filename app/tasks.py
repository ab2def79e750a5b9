"""Tasks: small work beside jobs, such as the inspection of a data set, done under the leases of `app.platform.leases`.

    queued -> running -> succeeded | failed        running -> queued (handed back, or its process crashed)
    queued | running -> cancelled

A task is about one row, its subject. `Kind.follow` brings the subject in line with the task in the transaction that
changes the task; it is called after each change but a cancel, which comes from the subject's side. Who changes both
locks the task first, so that two transactions never wait for each other. The caller opens the transaction and commits
it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from app.platform import leases
from app.platform.database import now, seconds_from_now
from app.tables import Task, TaskKind, TaskStatus

_UNFINISHED: frozenset[TaskStatus] = frozenset({"queued", "running"})


@dataclass(frozen=True)
class Kind:
    """A kind of task."""

    name: TaskKind
    follow: Callable[[Session, Task], None]
    """Brings the subject in line with the task."""
    crash_failure: Mapping[str, Any] | None = None
    """The failure of a task that has crashed too often. None: such a task is tried again without a limit."""


@dataclass(frozen=True)
class TaskClaim:
    """One process's claim of a task."""

    kind: Kind
    task_id: str
    attempt: int
    """The fencing token."""
    project_id: str
    subject_id: str
    arguments: Mapping[str, Any]


def add(
    session: Session,
    kind: TaskKind,
    *,
    project_id: str,
    subject_id: str,
    arguments: Mapping[str, Any] | None = None,
) -> Task:
    """Queue a task about a row. The caller checks the quota of waiting tasks, as `app.projects.quotas` describes."""
    task = Task(project_id=project_id, kind=kind, subject_id=subject_id, arguments=dict(arguments or {}))
    session.add(task)
    session.flush()
    return task


def claim(
    session: Session,
    kinds: Sequence[Kind],
    *,
    owner: str,
    lease_seconds: float,
    max_crashes: int | None = None,
    subject_id: str | None = None,
) -> TaskClaim | None:
    """Claim the oldest waiting task of these kinds, tasks of crashed processes included; None where none waits.

    subject_id: only a task about this row. max_crashes: the number of crashes at which a task fails.
    """
    expire(session, kinds, max_crashes=max_crashes)
    waits = [Task.status == "queued", Task.kind.in_([kind.name for kind in kinds])]
    if subject_id is not None:
        waits.append(Task.subject_id == subject_id)
    oldest = leases.next_of(Task, select(Task.id).where(*waits).order_by(Task.id))
    claimed = leases.claim(session, Task, oldest, *waits, owner=owner, seconds=lease_seconds, status="running")
    if not claimed:
        return None
    task = claimed[0]
    kind = next(each for each in kinds if each.name == task.kind)
    kind.follow(session, task)
    return TaskClaim(kind, task.id, task.attempt, task.project_id, task.subject_id, task.arguments)


def renew(session: Session, held: TaskClaim, *, lease_seconds: float) -> None:
    """Extend the lease. Raises LeaseLost."""
    leases.renew(session, Task.id, held.task_id, held.attempt, seconds=lease_seconds)


def succeed(session: Session, held: TaskClaim, result: Mapping[str, Any] | None = None) -> None:
    """End the task well. Raises LeaseLost."""
    _release(session, held, status="succeeded", result=dict(result or {}), finished_at=now())


def fail(session: Session, held: TaskClaim, failure: Mapping[str, Any]) -> None:
    """End the task with a failure, for good. Raises LeaseLost."""
    _release(session, held, status="failed", failure=dict(failure), finished_at=now())


def hand_back(session: Session, held: TaskClaim) -> None:
    """Queue the task again; this is not a crash. Raises LeaseLost."""
    _release(session, held, status="queued")


def record_crash(session: Session, held: TaskClaim, *, max_crashes: int | None) -> None:
    """Count a crash, and queue the task again or fail it. Raises LeaseLost."""
    _after_crash(session, held.kind, leases.lock(session, Task, held.task_id, held.attempt), max_crashes=max_crashes)


def expire(session: Session, kinds: Sequence[Kind], *, max_crashes: int | None) -> None:
    """Take back the tasks whose lease has expired. Any process may do this at any time."""
    of = {kind.name: kind for kind in kinds}
    expired = select(Task).where(Task.status == "running", Task.kind.in_(of), leases.has_expired(Task))
    for task in leases.lock_all(session, expired, Task):
        _after_crash(session, of[task.kind], task, max_crashes=max_crashes)


def cancel(session: Session, subject_ids: Iterable[str]) -> None:
    """Cancel the unfinished tasks about these rows. A process that works on one learns of it by LeaseLost."""
    mine = Task.subject_id.in_(list(subject_ids)), Task.status.in_(_UNFINISHED)
    # Locked in one order, so that two transactions that cancel several do not wait for each other.
    locked = session.scalars(select(Task.id).where(*mine).order_by(Task.id).with_for_update()).all()
    if locked:
        cancelled = {"status": "cancelled", "finished_at": now(), **leases.RELEASED}
        leases.change(session, Task, Task.id.in_(locked), Task.status.in_(_UNFINISHED), **cancelled)


def waiting(session: Session, kind: TaskKind) -> Sequence[str]:
    """List the subjects of the tasks of a kind that can be claimed, oldest first."""
    expired = and_(Task.status == "running", leases.has_expired(Task))
    found = select(Task.subject_id).where(Task.kind == kind, or_(Task.status == "queued", expired))
    return session.scalars(found.order_by(Task.id)).all()


def have_waited(session: Session, kinds: Sequence[Kind], *, seconds: float) -> bool:
    """Whether a task of these kinds has waited for longer than `seconds`."""
    queued = Task.status == "queued", Task.kind.in_([kind.name for kind in kinds])
    old = Task.created_at < seconds_from_now(-seconds)
    return session.scalar(select(Task.id).where(*queued, old).limit(1)) is not None


def latest_attempts(session: Session, kinds: Sequence[Kind], subject_ids: Collection[str]) -> Mapping[str, int]:
    """Read the number of the latest claim of each unfinished task of these kinds and subjects, by subject."""
    kind_names = [kind.name for kind in kinds]
    unfinished = Task.status.in_(_UNFINISHED), Task.kind.in_(kind_names), Task.subject_id.in_(subject_ids)
    rows = session.execute(select(Task.subject_id, func.max(Task.attempt)).where(*unfinished).group_by(Task.subject_id))
    return {row[0]: row[1] for row in rows}


def _release(session: Session, held: TaskClaim, **values: Any) -> None:
    fence = leases.fence(Task, held.task_id, held.attempt)
    changed = leases.change(session, Task, *fence, **leases.RELEASED, **values)
    held.kind.follow(session, leases.require(changed, held.task_id))


def _after_crash(session: Session, kind: Kind, task: Task, *, max_crashes: int | None) -> None:
    """Queue a locked task again, or fail it where it has crashed too often."""
    values: dict[str, Any] = {"crashes": task.crashes + 1, "status": "queued", **leases.RELEASED}
    if kind.crash_failure and max_crashes is not None and task.crashes + 1 >= max_crashes:
        values |= {"status": "failed", "failure": dict(kind.crash_failure), "finished_at": now()}
    (changed,) = leases.change(session, Task, Task.id == task.id, **values)
    kind.follow(session, changed)
