"""`python -m app.operations.recount`: compare the totals of usage and quotas with the rows that they count, and correct
them.

Safe while the service runs: the rows are read as they were at one moment, and the differences are added.
"""

import sys

from sqlalchemy.exc import DatabaseError

from app.platform import logs
from app.platform.database import Database, open_database
from app.platform.settings import Settings
from app.projects import totals


def main() -> None:
    """Correct the totals, and say which were wrong by how much."""
    settings = Settings.from_environment()
    logs.set_up(settings)
    database = open_database(settings.database_url)
    try:
        sys.stdout.write(correct(database))
    except DatabaseError as error:
        sys.exit(f"the totals cannot be counted again: {error.orig}")
    finally:
        database.close()


def correct(database: Database) -> str:
    """Correct the totals; return what to say of it, in lines."""
    with database.writing_on_one_state() as session:
        wrong = totals.recount(session)
    if not wrong:
        return "All totals are right.\n"
    lines = [f"{' '.join(part for part in key if part)}: {amount:+g}" for key, amount in sorted(wrong.items())]
    return "\n".join([f"{len(wrong)} totals were wrong and are corrected by:", *lines, ""])


if __name__ == "__main__":
    main()
