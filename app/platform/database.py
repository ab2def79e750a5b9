"""The database: one short transaction per request or task, committed here and nowhere else; and its clock.

SQLite (WAL) is the default, Postgres the database of a server. A transaction that will write says so when it opens,
because SQLite cannot upgrade a read without risking `database is locked`; in Postgres the two kinds of session are
alike. SQLite has one writer at a time. Those of one process take turns, because SQLite itself lets a writer that waits
try again now and then, so that under load others may be faster every time.
"""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    TypeDecorator,
    create_engine,
    event,
    inspect,
    literal,
    make_url,
    select,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.platform.turns import NoTurn, Turns

if TYPE_CHECKING:
    from alembic.config import Config

Row = TypeVar("Row", bound=DeclarativeBase)

MIGRATIONS = Path(__file__).parents[2] / "migrations"

THREADS = 16
"""Threads of an API process that may hold a connection at once; the pool has one for each."""
MORE_CONNECTIONS = 8
"""Connections beyond these, for the threads of the object store that write (`app.http.places`), and for maintenance."""
WAIT_SECONDS = 10.0
"""Time that a transaction on SQLite waits for others that write: for those of its process, then for other processes."""
AWAY = OperationalError, InternalError, NoConnectionFree, NoTurn
"""Errors of a database that cannot be reached or written, or that has aborted a transaction; another try may
succeed."""
_ALONE = 0x7E3BE5
"""Key of the advisory lock; any number that every process shares."""
_POSTGRES: dict[str, Any] = {
    "pool_pre_ping": True,
    "pool_recycle": 1800,
    "pool_timeout": 10,
    "connect_args": {
        "connect_timeout": 5,
        # A connection to a machine that has gone ends within half a minute, and a statement never waits for ever.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": "-c timezone=UTC -c statement_timeout=15s -c lock_timeout=5s "
        "-c idle_in_transaction_session_timeout=30s",
    },
}


class Timestamp(TypeDecorator[datetime]):
    """A moment in UTC; SQLite gives it back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """SQLite would store a moment of another zone as if it were UTC."""
        return value.astimezone(UTC) if value else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Mark a moment without a zone as UTC."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class seconds_from_now(FunctionElement[datetime]):  # noqa: N801  # reads as the SQL function it is
    """The database's own time plus some seconds. Leases use it, so that no worker's clock matters."""

    type = Timestamp()
    inherit_cache = True


@compiles(seconds_from_now, "sqlite")
def _in_sqlite(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    # SQLAlchemy reads six digits after the point, %f gives three.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ({seconds}) || ' seconds')"


@compiles(seconds_from_now, "postgresql")
def _in_postgres(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + ({seconds}) * interval '1 second')"


class seconds_between(FunctionElement[float]):  # noqa: N801  # reads as the SQL function it is
    """Seconds from the second moment to the first."""

    type = Float()
    inherit_cache = True


@compiles(seconds_between, "sqlite")
def _between_in_sqlite(element: seconds_between, compiler: SQLCompiler, **options: Any) -> str:
    later, earlier = (compiler.process(each, **options) for each in element.clauses)
    return f"((julianday({later}) - julianday({earlier})) * 86400.0)"


@compiles(seconds_between, "postgresql")
def _between_in_postgres(element: seconds_between, compiler: SQLCompiler, **options: Any) -> str:
    later, earlier = (compiler.process(each, **options) for each in element.clauses)
    return f"extract(epoch FROM ({later}) - ({earlier}))::float8"


def now() -> seconds_from_now:
    """The database's own time."""
    return seconds_from_now(0)


def moment(session: Session) -> datetime:
    """Ask the database what time it is."""
    return session.scalars(select(now())).one()


def why(error: Exception) -> str:
    """Return the message of the database or its driver. The error's own text quotes the statement with its values."""
    return str(getattr(error, "orig", error)).strip()


class Deleted(Exception):
    """Somebody has deleted the row since it was found; the message names it."""


def is_past(session: Session, at: datetime) -> bool:
    """Whether a moment has passed by the database's clock."""
    return bool(session.scalar(select(literal(at, Timestamp()) <= now())))


def lock_row(session: Session, table: type[Row], row_id: str, *, lets_change: bool = False) -> Row:
    """Read a row as it is now, and keep others from deleting it until the transaction ends.

    lets_change: others may still change it. A row that was found without a lock may be deleted a moment later: then
    this raises Deleted.
    """
    lock: Any = {"read": True, "key_share": True} if lets_change else True
    row = session.get(table, row_id, with_for_update=lock, populate_existing=True)
    if row is None or getattr(row, "deleted_at", None):
        raise Deleted(f"there is no {table.__tablename__.removesuffix('s')} {row_id!r} any more")
    return row


@dataclass(frozen=True)
class Schema:
    """The version of a database's schema, and the version that this code needs."""

    found: str | None
    needed: str
    is_known: bool
    """Whether this code knows the version that was found."""

    @property
    def complaint(self) -> str:
        """What is wrong, and what to do; empty where nothing is."""
        if self.found == self.needed:
            return ""
        if self.found is None:
            return "the database has no schema yet: run `temper migrate`"
        if self.is_known:
            return f"the database has schema {self.found}, this version needs {self.needed}: run `temper migrate`"
        return (
            f"the database has schema {self.found}, which is newer than this version of Temper ({self.needed}): "
            "start the version that made it, or a newer one"
        )


class Database:
    """One engine, and the two ways to open a transaction on it."""

    def __init__(self, url: str) -> None:
        options = _POSTGRES if make_url(url).get_backend_name() == "postgresql" else {}
        self.engine = create_engine(url, pool_size=THREADS, max_overflow=MORE_CONNECTIONS, **options)
        self._reading_engine = self.engine
        if self.engine.dialect.name == "sqlite":
            _close_to_others(make_url(url).database)
            _adapt_to_sqlite(self.engine)
        else:
            # Each statement sees what was committed before it, in a transaction or not: so two round trips are saved.
            self._reading_engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writing_engine = self.engine.execution_options(temper_writes=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that changes nothing."""
        with Session(self._reading_engine) as session:
            yield session

    @contextmanager
    def writing_alone(self) -> Iterator[Session]:
        """Open a writing transaction that waits for all others of this kind: one at a time."""
        with self.writing() as session:
            lock_out_others(session)
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that is committed at the end of the block, and rolled back by an exception."""
        with Session(self._writing_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing_on_one_state(self) -> Iterator[Session]:
        """Open a writing transaction whose statements all see the database as it was at the first one, and may take as
        long as they need."""
        # SQLite has one writer.
        one_state = {} if self.engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        engine = self._writing_engine.execution_options(**one_state)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            _let_take_time(session.connection())
            yield session

    def migrate(self) -> None:
        """Bring the schema to this code's version. Safe when two processes start at once: the second one waits."""
        # Few starts migrate, and the import takes a tenth of a second or more: no process holds the lock meanwhile.
        from alembic import command

        with self._writing_engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # The second one waits as long as it takes; a change of a large table takes longer than any request.
                _let_take_time(connection)
                _lock_out_others(connection)
                connection.exec_driver_sql("SET LOCAL lock_timeout = '30s'")
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def schema(self) -> Schema:
        """Read the version of the schema."""
        # Each migration's file name begins with its revision.
        known = {path.name[:4] for path in (MIGRATIONS / "versions").glob("*.py")}
        found = None
        with self.engine.connect() as connection:
            if inspect(connection).has_table("alembic_version"):
                found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return Schema(found, max(known), found in known)

    def try_to_write(self) -> None:
        """Write something and take it back. Raises OperationalError where that fails, as on a full disk."""
        with self._writing_engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                _spill(connection)
            else:
                connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open the database with this code's schema; end the program with a plain sentence where that fails."""
    database = Database(url)
    try:
        schema = database.schema()
        if schema.found and not schema.is_known:
            sys.exit(schema.complaint)
        if schema.complaint:
            database.migrate()
    except DatabaseError as error:
        sys.exit(f"the database at {database.engine.url} cannot be used: {error.orig}")
    return database


def alembic_config() -> "Config":
    """Return the configuration of alembic for the folder of the migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _let_take_time(connection: Connection) -> None:
    """Let the statements of this transaction take longer than those of any request."""
    if connection.dialect.name == "postgresql":
        for timeout in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {timeout} = 0")


def lock_out_others(session: Session) -> None:
    """Let a transaction wait for all others of this kind: one at a time. SQLite has one writer."""
    _lock_out_others(session.connection())


def _lock_out_others(connection: Connection) -> None:
    """Take a lock that one process at a time holds until its transaction ends. SQLite needs none."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ALONE})")


def _spill(connection: Connection) -> None:
    """Write more than the cache holds: SQLite keeps the rest of a transaction from the disk until the commit."""
    before = connection.exec_driver_sql("PRAGMA cache_size").scalar_one()
    connection.exec_driver_sql("PRAGMA cache_size = 1")
    try:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = zeroblob(65536)")
    finally:
        connection.exec_driver_sql(f"PRAGMA cache_size = {before}")


def _use_a_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL. Where several processes do so on a new file at once, SQLite refuses without waiting."""
    # Not tenacity, whose import delays every start.
    deadline = monotonic() + 5
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def _close_to_others(file: str | None) -> None:
    """Let only this user read and write a database file. SQLite gives the files beside it the same mode."""
    if file is None or file == ":memory:":
        return
    # A folder that is missing, or a file of another user, is told of when the database is opened.
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _adapt_to_sqlite(engine: Engine) -> None:
    turns = Turns()

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # SQLAlchemy begins transactions below; the driver's own begin comes too late to be IMMEDIATE.
        assert isinstance(connection, sqlite3.Connection)
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000:.0f}")
        _use_a_log(connection)
        for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("temper_writes"):
            connection.exec_driver_sql("BEGIN")
            return
        if not connection.info.get("has_turn"):
            turns.take(seconds=WAIT_SECONDS)
            connection.info["has_turn"] = True
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise NoTurn(f"another process has been writing to the database for {WAIT_SECONDS:g} s") from error

    @event.listens_for(engine, "checkin")
    def checkin(_: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        if record.info.pop("has_turn", False):
            turns.end()
