"""The database: migrated once, written by many, by its own clock."""

import hashlib
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text
from sqlalchemy.dialects import postgresql

import app.platform.database
from app.jobs import lifecycle
from app.operations import migrate
from app.platform.database import Database, alembic_config, now, open_database, seconds_from_now
from app.platform.turns import NoTurn
from app.schemas.job_request import parse_request
from app.tables import Project, Table
from tests.support import instance as made
from tests.support.instance import DIGITS, new_instance

ROOT = Path(__file__).parents[3]

on_sqlite = pytest.mark.parametrize("instance", ["sqlite"], indirect=True)


def test_the_migrations_make_the_tables_of_the_code(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []
        assert database.schema().found == context.get_current_revision()
    assert database.schema().needed == ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert database.schema().complaint == ""


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_two_processes_may_migrate_at_once(tmp_path, backend, postgres_server):
    url = f"sqlite:///{tmp_path}/temper.db"
    if backend == "postgres":
        url = postgres_server.create_database("migrated_at_once")
    barrier = threading.Barrier(4)

    def migrate(_):
        database = Database(url)
        barrier.wait()
        database.migrate()
        try:
            return database.schema().complaint
        finally:
            database.close()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, range(4))) == [""] * 4


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_migrations_can_be_taken_back(tmp_path, backend, postgres_server):
    url = f"sqlite:///{tmp_path}/temper.db"
    if backend == "postgres":
        url = postgres_server.create_database("taken_back")
    database = open_database(url)
    with database.engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    database.close()


def test_unfinished_jobs_of_an_older_schema_get_their_requirements(tmp_path):
    with new_instance(tmp_path) as (_, database):
        project = made.add_project(database)
        specs = [DIGITS, DIGITS | {"gpus": 4}]
        with database.writing() as session:
            for spec in specs:
                lifecycle.create(session, project.id, parse_request(spec))
            right = session.execute(text("SELECT id, requires FROM jobs ORDER BY requires")).all()
        with database.engine.begin() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.downgrade(config, "0003")
            command.upgrade(config, "head")
        with database.reading() as session:
            assert session.execute(text("SELECT id, requires FROM jobs ORDER BY requires")).all() == right
        assert [requires for _, requires in right] == ['{"gpus":4}', "{}"]


def test_specs_of_an_older_schema_keep_their_interpolation_as_preprocessing(tmp_path):
    imagenet = {"base_model": "mine", "dataset": "imagenet", "preprocessing": {"interpolation": "bicubic"}}
    with new_instance(tmp_path) as (_, database):
        project = made.add_project(database)
        with database.writing() as session:
            for spec in (DIGITS, imagenet):
                lifecycle.create(session, project.id, parse_request(spec))
        with database.engine.begin() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.downgrade(config, "0004")
            old = [json.loads(spec) for (spec,) in connection.execute(text("SELECT spec FROM jobs ORDER BY id"))]
            command.upgrade(config, "head")
            new = [json.loads(spec) for (spec,) in connection.execute(text("SELECT spec FROM jobs ORDER BY id"))]
    assert [spec["evaluation"]["interpolation"] for spec in old] == ["bilinear", "bicubic"]
    assert [parse_request(spec) for spec in new] == [parse_request(DIGITS), parse_request(imagenet)]


def test_a_migration_that_has_landed_stays_as_it_is():
    """A database that has run it would never get what is added later: write another one, and its hash here."""
    assert {
        path.name[:4]: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted((ROOT / "migrations" / "versions").glob("*.py"))
    } == {
        "0001": "9cf4e1f0b652",
        "0002": "571654e1884b",
        "0003": "acf3e38a3eaf",
        "0004": "7d9487d93ecb",
        "0005": "c1752f86a42d",
    }


@on_sqlite
def test_a_change_of_a_database_with_rows_says_first_how_to_go_back(database, later_schema, capsys):
    before, after = later_schema
    assert database.schema().complaint.startswith(f"the database has schema {before}, this version needs {after}: run")
    try:
        migrate._migrate(database)
    finally:
        with database.writing() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})
    said = capsys.readouterr().out
    assert f"changes from {before} to {after}. The way back is a backup" in said
    assert said.endswith(f"The schema is {after}.\n")


def test_a_database_of_a_newer_version_is_refused_in_a_sentence(tmp_path):
    with new_instance(tmp_path) as (settings, database):
        with database.writing() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SystemExit, match="newer than this version of Temper"):
            open_database(settings.database_url)


@on_sqlite
def test_a_trial_write_reaches_the_disk_and_changes_nothing(database, settings):
    log = settings.data_dir / "temper.db-wal"
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.try_to_write()
    assert log.stat().st_size > 65536
    assert database.schema().complaint == ""


@on_sqlite
def test_many_threads_write_without_a_locked_database(database):
    def write(number):
        with database.writing() as session:
            count = len(session.scalars(select(Project.id)).all())
            session.add(Project(name=f"{number} after {count}"))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, range(120)))
    with database.reading() as session:
        names = session.scalars(select(Project.name)).all()
    assert sorted(int(name.split()[-1]) for name in names) == list(range(120))


def add_project(database):
    with database.writing() as session:
        session.add(Project(name="x"))


@on_sqlite
def test_a_writer_waits_for_another_process_that_writes(database, settings):
    with closing(sqlite3.connect(settings.data_dir / "temper.db", check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, other.rollback)
        timer.start()
        add_project(database)
        timer.join()


@on_sqlite
def test_a_writer_that_waits_too_long_for_another_process_is_told(database, settings, monkeypatch):
    monkeypatch.setattr(app.platform.database, "WAIT_SECONDS", 0.1)
    with closing(Database(settings.database_url)) as impatient:
        with closing(sqlite3.connect(settings.data_dir / "temper.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(NoTurn, match=r"another process has been writing to the database for 0\.1 s"):
                add_project(impatient)
        add_project(impatient)


@on_sqlite
def test_a_writer_that_waits_too_long_for_its_own_process_is_told(database, settings, monkeypatch):
    monkeypatch.setattr(app.platform.database, "WAIT_SECONDS", 0.1)
    with closing(Database(settings.database_url)) as impatient, ThreadPoolExecutor(1) as pool:
        with impatient.writing() as session:
            session.add(Project(name="first"))
            session.flush()
            with pytest.raises(NoTurn, match=r"other transactions have been writing to the database for 0\.1 s"):
                pool.submit(add_project, impatient).result()
        add_project(impatient)


def test_a_failed_transaction_leaves_nothing(database):
    def fail():
        with database.writing() as session:
            session.add(Project(name="x"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.reading() as session:
        assert session.scalars(select(Project)).all() == []


def test_time_is_the_databases_and_in_utc(database):
    with database.reading() as session:
        at, later = session.execute(select(now(), seconds_from_now(90.5))).one()
    assert abs(at - datetime.now(UTC)) < timedelta(seconds=5)
    assert timedelta(seconds=90.4) < later - at < timedelta(seconds=90.6)


def test_time_is_said_in_the_words_of_postgres_too():
    said = str(seconds_from_now(30).compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    assert said == "(clock_timestamp() + (30) * interval '1 second')"


@on_sqlite
def test_sqlite_runs_in_wal_and_checks_foreign_keys(database, settings):
    with database.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
    assert sqlite3.connect(settings.data_dir / "temper.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_connections_that_the_server_has_closed_are_not_used_again(postgres_server):
    with closing(Database(postgres_server.create_database("closed"))) as database:
        with database.reading() as one, database.reading() as other:
            pids = [session.scalar(text("SELECT pg_backend_pid()")) for session in (one, other)]
        with psycopg.connect(postgres_server.url.replace("+psycopg", ""), autocommit=True) as outside:
            for pid in pids:
                outside.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        for opened in (database.reading, database.writing):
            with opened() as session:
                assert session.scalar(text("SELECT pg_backend_pid()")) not in pids
