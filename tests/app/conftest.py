"""The front end is tested on both databases.

Where a test asks more of the routes than of the database, Postgres is for the slow suite.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.platform import database
from tests.conftest import Instance
from tests.support.instance import new_instance, serving
from tests.support.native import ROOT

_HERE = Path(__file__).parent
QUICK_ON_POSTGRES = {
    "jobs/test_estimates",
    "jobs/test_fairness",
    "jobs/test_lifecycle",
    "jobs/test_races",
    "jobs/test_waiting",
    "platform/test_database",
    "projects/test_quotas",
    "routes/test_actions",
    "routes/test_event_stream",
    "routes/test_hostile_values",
    "operations/test_deletion",
    "test_followers",
    "test_history",
    "webhooks/test_webhooks",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what can wait."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        # Compared with an array, a string would give an array.
        on_postgres = any(isinstance(value, str) and value == "postgres" for value in values)
        if not on_postgres or not item.path.is_relative_to(_HERE):
            continue
        if str(item.path.relative_to(_HERE).with_suffix("")) not in QUICK_ON_POSTGRES:
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
    with serving(*instance, periodic_tasks=()) as url:
        yield url


@pytest.fixture
def later_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Give the code a schema with one revision more, which changes nothing; return the revision before it and it."""
    folder = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", folder)
    latest = max(path.name[:4] for path in (folder / "versions").glob("*.py"))
    later = f"{int(latest) + 1:04}"
    text = f"revision, down_revision = '{later}', '{latest}'\ndef upgrade(): ...\ndef downgrade(): ...\n"
    (folder / "versions" / f"{later}_later.py").write_text(text)

    monkeypatch.setattr(database, "MIGRATIONS", folder)
    return latest, later
