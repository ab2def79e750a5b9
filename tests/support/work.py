"""The work that statements cost a database: rows read on Postgres, steps of its machine on SQLite."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from app.platform.database import Database
from tests.support.sql_statements import Statement

_STEPS = 10
"""Steps of SQLite's machine that count as one."""


def cost(database: Database, statements: Sequence[Statement]) -> int:
    """Add up what statements cost that are executed again and taken back. Inserts are left out: their rows are there."""
    again = [
        (text, values)
        for text, values in statements
        if text.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE"))
    ]
    connection = database.engine.raw_connection()
    try:
        measure = _rows if database.engine.dialect.name == "postgresql" else _steps
        return measure(connection.driver_connection, again)
    finally:
        connection.rollback()
        connection.invalidate()


def _rows(connection: Any, statements: Sequence[Statement]) -> int:
    total = 0
    with connection.cursor() as cursor:
        # A table that is small here would be read whole, and not where it is large.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        for text, values in statements:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", values)
            (found,) = cursor.fetchone()
            plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
            total += sum(_read_by(node) for node in _nodes(plan))
    return total


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _read_by(node: dict[str, Any]) -> int:
    if "Scan" not in node["Node Type"] or node["Node Type"] in ("CTE Scan", "WorkTable Scan", "Subquery Scan"):
        return 0
    removed = sum(node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Index Recheck"))
    return round((node["Actual Rows"] + removed) * node["Actual Loops"])


def _steps(connection: Any, statements: Sequence[Statement]) -> int:
    count = 0

    def note() -> int:
        nonlocal count
        count += 1
        return 0

    connection.execute("BEGIN IMMEDIATE")
    connection.set_progress_handler(note, _STEPS)
    try:
        for text, values in statements:
            connection.execute(text, values).fetchall()
    finally:
        connection.set_progress_handler(None, 0)
    return count
