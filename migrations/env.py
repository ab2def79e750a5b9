"""How alembic reaches the database: on the connection that `app.platform.database` hands over, else by the settings."""

from alembic import context
from sqlalchemy import Connection

from app.platform.database import Database
from app.platform.settings import Settings
from app.tables import Table


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with Database(Settings.from_environment().database_url).engine.begin() as own:
        _run(own)
