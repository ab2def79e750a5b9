"""Pages of lists: some rows from a cursor on, and whether more follow.

A page costs the same whatever the list has before or after it. The rows of a list are neighbours in an index: of its
`Place`, some columns and their values, and within it in the order of the cursor. A row that does not fit a further
filter is passed over, and a page ends after LOOKED_AT rows at the latest: it may then be short, even empty, and have
more after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, select, tuple_
from sqlalchemy.orm import Session

Row = TypeVar("Row")
Order = Literal["asc", "desc"]

LOOKED_AT = 1000
"""Rows that one page looks at."""


@dataclass(frozen=True)
class Part(Generic[Row]):
    """Some rows of a list, and whether more follow."""

    rows: Sequence[Row]
    has_more: bool
    last: str | int | None
    """The cursor of the next page: that of the last row which was looked at."""


@dataclass(frozen=True)
class Place:
    """Where the rows of a list lie: an index must have exactly these columns, in this order, and the cursor last."""

    columns: Sequence[SQLColumnExpression[Any]]
    values: Sequence[Any]
    only: Sequence[ColumnElement[bool]] = field(default_factory=tuple)
    """The condition of the index, where it has only some rows, and what all rows but a few fulfil."""


def list_rows(
    session: Session,
    table: type[Row],
    cursor: SQLColumnExpression[Any],
    place: Place,
    *,
    after: str | int | None,
    limit: int,
    order: Order,
) -> Part[Row]:
    """List the rows after `after`, ordered by the column `cursor`, which names a row within its place."""
    query = _within(select(table), cursor, place, after=after, order=order).limit(limit + 1)
    rows = session.scalars(query).all()
    last = _cursor_of(rows[:limit][-1], cursor) if rows else None
    return Part(rows[:limit], has_more=len(rows) > limit, last=last)


def list_fitting(
    session: Session,
    table: type[Row],
    key: SQLColumnExpression[Any],
    cursor: SQLColumnExpression[Any],
    place: Place,
    fits: Sequence[ColumnElement[bool]],
    *,
    after: str | int | None,
    limit: int,
    order: Order,
) -> Part[Row]:
    """List those rows of a place that fit, as `list_rows` does.

    key: the primary key of `table`, whose value the cursor has; the cursor may be that of another table, then.
    """
    does_it: ColumnElement[bool] = and_(*fits)
    if cursor is not key:
        # Not a join: a planner may begin with the other table.
        does_it = select(does_it).where(key == cursor).correlate_except(table).scalar_subquery()
    looked = select(cursor, does_it)
    looked = _within(looked, cursor, place, after=after, order=order).limit(LOOKED_AT)
    seen = session.execute(looked).all()
    fitting = [name for name, does_fit in seen if does_fit]
    chosen = fitting[:limit]
    rows = session.scalars(select(table).where(key.in_(chosen))).all() if chosen else []
    rows = sorted(rows, key=lambda row: chosen.index(_cursor_of(row, key)))
    if len(fitting) > limit:
        return Part(rows, has_more=True, last=chosen[-1])
    is_cut = len(seen) == LOOKED_AT
    return Part(rows, has_more=is_cut, last=seen[-1][0] if is_cut else (chosen[-1] if chosen else None))


def _within(
    query: Any, cursor: SQLColumnExpression[Any], place: Place, *, after: str | int | None, order: Order
) -> Any:
    """Bound a query to a place by comparing rows of values, and order it by all columns of the index.

    An equality with each value would say the same. But a planner then holds the order to be that of the cursor alone,
    and where its statistics say that most rows have these values it reads an index of the cursor alone, in search of
    rows that may be far away.
    """
    columns = (*place.columns, cursor)
    at, values = tuple_(*place.columns), tuple_(*place.values)
    here, known = tuple_(*columns), tuple_(*place.values, after)
    query = query.where(*place.only)
    if order == "asc":
        query = query.order_by(*(column.asc() for column in columns))
        bounds = [here > known] if after is not None else [at >= values] if place.columns else []
        return query.where(*bounds, *([at <= values] if place.columns else []))
    query = query.order_by(*(column.desc() for column in columns))
    bounds = [here < known] if after is not None else [at <= values] if place.columns else []
    return query.where(*bounds, *([at >= values] if place.columns else []))


def _cursor_of(row: Any, cursor: SQLColumnExpression[Any]) -> Any:
    return getattr(row, cursor.key)  # type: ignore[attr-defined]
