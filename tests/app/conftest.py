"""The front end is tested on both databases.

Where a test asks more of the routes than of the database, Postgres is for the slow suite.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Instance
from tests.support.instance import new_instance, serving

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
