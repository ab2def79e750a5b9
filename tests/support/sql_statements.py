"""What is sent to the database, statement by statement."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from app.platform.database import Database

Statement = tuple[str, Any]
"""The text and its parameters."""


@contextmanager
def sent(database: Database) -> Iterator[list[Statement]]:
    """Collect what is sent while the block runs."""
    statements: list[Statement] = []

    def note(connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((text, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
