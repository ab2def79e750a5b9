"""What many tests need: an instance in a folder of its own, its database, and a client of its API."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.database import Database
from app.settings import Settings
from app.tables import Project
from tests.instance import add_key, add_project, calling, serving


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with clocks that suit a test."""
    settings = Settings(
        data_dir=tmp_path / "data",
        watch_seconds=0.02,
        poll_seconds=0.02,
        heartbeat_seconds=0.1,
        lease_seconds=30,
        cancel_grace_seconds=1,
    )
    settings.make_folders()
    return settings


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite file with the schema of this version, made once to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "temper.db"
    database = Database(f"sqlite:///{file}")
    database.migrate()
    database.close()
    return file


@pytest.fixture
def database(settings: Settings, migrated: Path) -> Iterator[Database]:
    """A database of the test's own."""
    shutil.copy(migrated, settings.data_dir)
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture
def project(database: Database) -> Project:
    """A project in the database."""
    return add_project(database)


@pytest.fixture
def url(settings: Settings, database: Database) -> Iterator[str]:
    """The address of a running API."""
    with serving(settings, database) as url:
        yield url


@pytest.fixture
def api(url: str, database: Database, project: Project) -> Iterator[httpx2.Client]:
    """A client of the running API with the project's key."""
    with calling(url, add_key(database, project)) as client:
        yield client
