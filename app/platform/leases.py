"""Leases: one process at a time works on a row, for as long as it renews its claim.

A claim raises the row's `attempt`, which is the fencing token: a write under an earlier attempt changes nothing and
raises LeaseLost. A row is held while its `lease_until` is set; a held row whose `lease_until` has passed has expired,
and any process may take it back. All times are the database's own, so no process's clock matters.

What the statuses of a row mean is the business of its owner: `app.jobs.claims` for jobs, `app.tasks` for tasks,
`app.webhooks.deliveries` for deliveries.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from sqlalchemy import ColumnElement, Select, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, mapped_column

from app.platform.database import now, seconds_from_now

_UNSYNCHRONISED: dict[str, Any] = {"synchronize_session": False, "populate_existing": True}


class Leased:
    """The columns of a row that is worked on under a lease."""

    HELD: ClassVar[frozenset[str]]
    """The statuses in which a process can hold the row."""

    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    attempt: Mapped[int] = mapped_column(default=0)
    """The number of claims so far. The number of the latest claim is its fencing token."""
    owner: Mapped[str | None]
    """The process that made the latest claim."""
    lease_until: Mapped[datetime | None]
    """Until when that process holds the row; None where no process holds it."""


Row = TypeVar("Row", bound=Leased)
Found = TypeVar("Found")
RELEASED: dict[str, Any] = {"lease_until": None}
"""The values that end a lease."""


class LeaseLost(Exception):
    """The caller no longer holds the row and must stop working on it at once."""


def next_of(table: type[Leased], waiting: Select[str]) -> ColumnElement[bool]:
    """The condition that chooses the first row of a query, past the rows that other transactions have locked."""
    return table.id == waiting.limit(1).with_for_update(skip_locked=True, of=table).scalar_subquery()


def any_of(table: type[Leased], waiting: Select[str]) -> ColumnElement[bool]:
    """The condition that chooses all rows of a query, past the rows that other transactions have locked."""
    # Postgres may run a subquery again for each row, past those that the statement has just locked, and so choose more
    # than the limit of the query. A CTE that locks is run once.
    chosen = waiting.with_for_update(skip_locked=True, of=table).cte("chosen")
    return table.id.in_(select(*chosen.c))


def claimed(table: type[Leased], *, owner: str, seconds: float) -> dict[str, Any]:
    """The values that claim a row for `seconds`."""
    return {"attempt": table.attempt + 1, "owner": owner, "lease_until": seconds_from_now(seconds)}


def claim(
    session: Session, table: type[Row], *where: ColumnElement[bool], owner: str, seconds: float, **values: Any
) -> Sequence[Row]:
    """Claim the rows that `next_of` or `any_of` chooses, in one statement, and set further values.

    where: the choice, and the conditions under which a row waits. These must be repeated here: they then hold for the
    row as it is now, and not only as the choice has seen it.
    """
    return change(session, table, *where, **claimed(table, owner=owner, seconds=seconds), **values)


def fence(table: type[Leased], row_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    """The condition under which the claim with this number still holds the row."""
    return (
        table.id == row_id,
        table.attempt == attempt,
        table.status.in_(table.HELD),
        table.lease_until.is_not(None),
    )


def renew(
    session: Session, returning: InstrumentedAttribute[Found], row_id: str, attempt: int, *, seconds: float
) -> Found:
    """Extend a lease to `seconds` from now, and return a column of its row. Raises LeaseLost."""
    table: type[Leased] = returning.parent.class_
    renewed = update(table).where(*fence(table, row_id, attempt)).values(lease_until=seconds_from_now(seconds))
    return require(session.scalars(renewed.returning(returning)).all(), row_id)


def lock(session: Session, table: type[Row], row_id: str, attempt: int) -> Row:
    """Read a held row, and keep others from changing it until the transaction ends. Raises LeaseLost."""
    held = select(table).where(*fence(table, row_id, attempt)).with_for_update()
    return require(session.scalars(held, execution_options={"populate_existing": True}).all(), row_id)


def require(rows: Sequence[Found], row_id: str) -> Found:
    """Return the one row that a fenced statement has found. Raises LeaseLost."""
    if not rows:
        raise LeaseLost(row_id)
    return rows[0]


def is_free(table: type[Leased]) -> ColumnElement[bool]:
    """Whether no process holds the row, or its lease has expired."""
    return or_(table.lease_until.is_(None), has_expired(table))


def has_expired(table: type[Leased]) -> ColumnElement[bool]:
    """Whether the lease of a held row has expired."""
    return table.lease_until < now()


def lock_all(session: Session, query: Select[Row], table: type[Row]) -> Sequence[Row]:
    """Read the rows of a query and lock them in the order of their ids, past those that other transactions have locked:
    so two processes that take back expired rows at the same time do not wait for each other."""
    found = query.order_by(table.id).with_for_update(skip_locked=True)
    return session.scalars(found, execution_options={"populate_existing": True}).all()


def change(session: Session, table: type[Row], *where: ColumnElement[bool], **values: Any) -> Sequence[Row]:
    """Change the rows under these conditions, and return them as they are then."""
    statement = update(table).where(*where).values(values).returning(table)
    return session.scalars(statement, execution_options=_UNSYNCHRONISED).all()
