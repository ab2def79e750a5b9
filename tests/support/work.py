"""The work that statements cost a database: rows read on Postgres, steps of its machine on SQLite."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from app.platform.database import Database
from tests.support.sql_statements import Statement

_STEPS = 10
"""Steps of SQLite's machine that count as one."""


def costs(database: Database, statements: Sequence[Statement]) -> list[int]:
    """Find what each statement costs that is executed again and taken back; of an insert, whose rows are there, 0."""
    kinds = ("SELECT", "WITH", "UPDATE", "DELETE")
    again = [(text, values) if text.lstrip().startswith(kinds) else None for text, values in statements]
    connection = database.engine.raw_connection()
    try:
        measure = _rows if database.engine.dialect.name == "postgresql" else _steps
        return measure(connection.driver_connection, again)
    finally:
        connection.rollback()
        connection.invalidate()


def _rows(connection: Any, statements: Sequence[Statement | None]) -> list[int]:
    found = []
    with connection.cursor() as cursor:
        # A table that is small here would be read or sorted whole, and not where it is large.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        for statement in statements:
            if statement is None:
                found.append(0)
                continue
            text, values = statement
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", values)
            (told,) = cursor.fetchone()
            plan = (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]
            found.append(sum(_read_by(node) for node in _nodes(plan)))
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _read_by(node: dict[str, Any]) -> int:
    if "Scan" not in node["Node Type"] or node["Node Type"] in ("CTE Scan", "WorkTable Scan", "Subquery Scan"):
        return 0
    removed = sum(node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Index Recheck"))
    return round((node["Actual Rows"] + removed) * node["Actual Loops"])


def _steps(connection: Any, statements: Sequence[Statement | None]) -> list[int]:
    count = 0

    def note() -> int:
        nonlocal count
        count += 1
        return 0

    found = []
    connection.execute("BEGIN IMMEDIATE")
    connection.set_progress_handler(note, _STEPS)
    try:
        for statement in statements:
            count = 0
            if statement:
                connection.execute(*statement).fetchall()
            found.append(count)
    finally:
        connection.set_progress_handler(None, 0)
    return found
