"""The two things a client can talk to: a server that does what a test says, and a real service."""

from collections.abc import Iterator

import pytest

from client import Temper
from tests.support.live_service import Service, start_service
from tests.support.scripted_service import Script, scripted_server


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def temper(script: Script) -> Iterator[Temper]:
    with Temper(script.url, "tmp_key") as temper:
        yield temper


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = start_service(tmp_path_factory.mktemp("service"))
    yield service
    service.stop()
