"""What many tests need: an instance of the service, as empty as on its first day, and a client of its API."""

import os
import shutil
import ssl
from collections.abc import Iterator
from functools import cache

import httpcore2
import httpx2
import pytest
from hypothesis import settings as hypothesis

from app.platform.database import Database
from app.platform.settings import Settings
from app.tables import Audit, Project, Table
from tests.support.forked import stop_server
from tests.support.instance import add_key, add_project, calling, new_instance, serving
from tests.support.servers import Postgres, SeaweedFS, Valkey, postgres, seaweedfs, valkey

Instance = tuple[Settings, Database]

# The first example of a test pays for imports, and both cores may be busy. The gate asks the same questions each time:
# what it finds must come from the change. `pytest --hypothesis-profile explore` asks new ones.
hypothesis.register_profile("gate", deadline=None, derandomize=True)
hypothesis.register_profile("explore", deadline=None, max_examples=500)
hypothesis.load_profile("gate")

_read_certificates = httpcore2.default_ssl_context


@cache
def _certificates(_file: str | None, **options: bool) -> ssl.SSLContext:
    return _read_certificates(**options)


def _shared_certificates(**options: bool) -> ssl.SSLContext:
    """Each client would read the machine's certificates again, which takes longer than most tests of the API."""
    return _certificates(os.environ.get("SSL_CERT_FILE"), **options)


httpcore2.default_ssl_context = _shared_certificates


def pytest_sessionfinish() -> None:
    """End what has outlived the tests."""
    stop_server()


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance for all tests; `settings` and `database` hand it out and clean up behind each."""
    with new_instance(tmp_path_factory.mktemp("instance")) as made:
        yield made


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One Postgres for all tests; each that breaks things makes its own."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedFS]:
    """One S3 server for all tests; each that breaks things makes its own."""
    with seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """One Valkey for all tests; each that breaks things makes its own."""
    with valkey() as server:
        yield server


@pytest.fixture
def settings(instance: Instance) -> Iterator[Settings]:
    """Settings with clocks that suit a test, and empty folders."""
    settings, _ = instance
    yield settings
    for folder in (
        settings.objects_dir,
        settings.work_dir,
        settings.cache_dir,
        settings.models_dir,
        settings.datasets_dir,
    ):
        shutil.rmtree(folder)
    settings.make_folders()


@pytest.fixture
def database(instance: Instance) -> Iterator[Database]:
    """An SQLite file with the schema of this version, and no rows."""
    _, database = instance
    yield database
    with database.writing() as session:
        for table in reversed(Table.metadata.sorted_tables):
            if table is not Audit.__table__:  # append-only, and it refers to nothing
                session.execute(table.delete())


@pytest.fixture
def project(database: Database) -> Project:
    """A project in the database."""
    return add_project(database)


@pytest.fixture(scope="session")
def server(instance: Instance) -> Iterator[str]:
    """One server for all tests. It does no periodic_tasks, which would get in the way of tests that do them by hand."""
    with serving(*instance, periodic_tasks=()) as url:
        yield url


@pytest.fixture
def url(server: str, settings: Settings, database: Database) -> str:
    """The address of the running API."""
    return server


@pytest.fixture
def api(url: str, database: Database, project: Project) -> Iterator[httpx2.Client]:
    """A client of the running API with the project's key."""
    with calling(url, add_key(database, project)) as client:
        yield client
