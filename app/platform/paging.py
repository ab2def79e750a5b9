"""Pages of lists: some rows from a cursor on, and whether more follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session

Row = TypeVar("Row")
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Part(Generic[Row]):
    """Some rows of a list, and whether more follow."""

    rows: Sequence[Row]
    has_more: bool


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
    """List the rows after `after`, ordered by the column `cursor`."""
    query = select(table).where(*where).order_by(cursor.asc() if order == "asc" else cursor.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(cursor > after if order == "asc" else cursor < after)
    rows = session.scalars(query).all()
    return Part(rows[:limit], has_more=len(rows) > limit)
