"""`python -m app.operations.migrate`: bring the database to this version's schema, and make the first API key where
there is none.

Safe when two run at once: the second waits for the first, and finds nothing left to do.
"""

import json
import sys

from sqlalchemy.exc import DatabaseError

from app.http.authentication import tell_first_key
from app.platform import logs
from app.platform.database import Database
from app.platform.settings import Settings

_BACK_UP = "The way back is a backup from before: `make backup`, or pg_dump."


def main() -> None:
    """Migrate; end the program with a plain sentence where that fails."""
    settings = Settings.from_environment()
    logs.set_up(settings)
    database = Database(settings.database_url)
    try:
        _migrate(database, as_json=settings.log_format == "json")
        tell_first_key(database, settings)
    except DatabaseError as error:
        sys.exit(f"the database at {database.engine.url} cannot be migrated: {error.orig}")
    finally:
        database.close()


def _migrate(database: Database, *, as_json: bool = False) -> None:
    def say(line: str) -> None:
        sys.stdout.write(f"{json.dumps({'event': line}) if as_json else line}\n")
        sys.stdout.flush()

    before = database.schema()
    if before.found and not before.is_known:
        sys.exit(before.complaint)
    if before.found == before.needed:
        say(f"The schema is {before.needed}: there is nothing to do.")
        return
    if before.found:
        say(f"The schema changes from {before.found} to {before.needed}. {_BACK_UP}")
    database.migrate()
    say(f"The schema is {before.needed}.")


if __name__ == "__main__":
    main()
