"""The front end is tested on both databases."""

from collections.abc import Iterator

import pytest

from tests.conftest import Instance
from tests.instance import new_instance, serving


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
