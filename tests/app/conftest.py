"""The front end is tested on both databases.

Where a test asks more of the routes than of the database, Postgres is for the slow suite.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config

from app import database as app_database
from tests.conftest import Instance
from tests.instance import new_instance, serving
from tests.native import ROOT

QUICK_ON_POSTGRES = {
    "test_actions",
    "test_database",
    "test_estimates",
    "test_event_stream",
    "test_fairness",
    "test_hostile_values",
    "test_jobs",
    "test_quotas",
    "test_races",
    "test_webhooks",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what can wait."""
    for item in items:
        on_postgres = "postgres" in getattr(getattr(item, "callspec", None), "params", {}).values()
        if item.path.parent == Path(__file__).parent and on_postgres and item.path.stem not in QUICK_ON_POSTGRES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance on each database."""
    folder = tmp_path_factory.mktemp("instance")
    if request.param == "sqlite":
        with new_instance(folder) as made:
            yield made
        return
    server = request.getfixturevalue("postgres_server")
    with new_instance(folder, database_url=server.create_database("app")) as made:
        yield made


@pytest.fixture(scope="session")
def server(instance: Instance) -> Iterator[str]:
    """One server for each: tests elsewhere have theirs."""
    with serving(*instance, chores=()) as url:
        yield url


@pytest.fixture
def later_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the code a schema with one revision more, 0002, which changes nothing."""
    folder = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", folder)
    later = "revision, down_revision = '0002', '0001'\ndef upgrade(): ...\ndef downgrade(): ...\n"
    (folder / "versions" / "0002_later.py").write_text(later)

    def config() -> Config:
        made = Config()
        made.set_main_option("script_location", str(folder))
        return made

    app_database._versions.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(app_database, "_alembic", config)
        yield
    app_database._versions.cache_clear()
