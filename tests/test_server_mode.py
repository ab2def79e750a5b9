"""A server as its operator runs it: Postgres, a broker, and the API and its workers by their commands."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import select, text

from app.platform.database import Database
from app.tables import ApiKey
from tests.support.instance import DIGITS, calling
from tests.support.native import FAKE_WORKER, ROOT, finish, instance
from tests.support.processes import wait_until

KEY = f"tmp_abcdefgh_{'x' * 32}"
API = ("-m", "client", "api")


@pytest.fixture
def server(tmp_path, postgres_server, valkey_server, request):
    """A server that nobody has migrated yet."""
    url = postgres_server.create_database(f"server-{time.monotonic_ns()}")
    chosen = getattr(request, "param", {})
    with instance(
        tmp_path, *FAKE_WORKER, database_url=url, broker_url=valkey_server.url, first_api_key=KEY, **chosen
    ) as temper:
        yield temper


def test_a_server_from_an_empty_database_to_a_job_that_has_succeeded(server):
    assert server.temper("migrate").returncode == 0
    server.start_api(*API)
    with server.worker(), calling(server.url, KEY) as api:
        job = finish(api, api.post("/jobs", json=DIGITS).json()["id"])
        assert (job["status"], job["attempt"]) == ("succeeded", 1)
        assert api.get(f"/checkpoints/{job['checkpoint']}/download", follow_redirects=True).content
        assert len(api.get(f"/jobs/{job['id']}/metrics").json()["data"]) == 10


@pytest.mark.slow
def test_migrating_is_safe_twice_at_once_and_makes_one_key(server):
    server.environment.pop("TEMPER_FIRST_API_KEY")
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(lambda _: server.temper("migrate"), range(3)))
    assert [each.returncode for each in told] == [0, 0, 0], told
    assert sum(each.stdout.count("API key, shown only now: tmp_") for each in told) == 1
    again = server.temper("migrate")
    latest = max(path.name[:4] for path in (ROOT / "migrations" / "versions").glob("*.py"))
    assert again.stdout == f"The schema is {latest}: there is nothing to do.\n"


@pytest.mark.slow
def test_a_server_is_not_ready_until_it_is_migrated_and_says_which_side_is_older(server):
    process = server.start(*API)
    wait_until(lambda: answers(server), seconds=60)
    refused = httpx2.get(f"{server.url}/readyz")
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert "run `temper migrate`" in refused.json()["detail"]
    with server.worker():
        assert server.temper("migrate").returncode == 0
        assert httpx2.get(f"{server.url}/readyz").status_code == 200
        with calling(server.url, KEY) as api:
            # The worker has waited for the schema, too.
            assert finish(api, api.post("/jobs", json=DIGITS).json()["id"])["status"] == "succeeded"
    stamp(server, "9999")
    refused = httpx2.get(f"{server.url}/readyz").json()
    assert "newer than this version of Temper" in refused["detail"]
    migrated = server.temper("migrate")
    assert (migrated.returncode, migrated.stdout) == (1, "")
    assert "start the version that made it" in migrated.stderr
    assert process.poll() is None


def stamp(server, version):
    database = Database(server.environment["TEMPER_DATABASE_URL"])
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    database.close()


def answers(server):
    try:
        return httpx2.get(f"{server.url}/livez").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("server", [{"api_workers": 2, "migrate_at_start": True}], indirect=True)
def test_api_processes_share_a_port_make_one_key_and_stop_with_open_streams(server):
    process = server.start_api(*API)
    database = Database(server.environment["TEMPER_DATABASE_URL"])
    with database.reading() as session:
        assert len(session.scalars(select(ApiKey)).all()) == 1
    database.close()
    with calling(server.url, KEY) as api:
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
    with ThreadPoolExecutor(6) as pool:
        opened = threading.Barrier(7)
        streams = [pool.submit(follow, server.url, job_id, opened) for _ in range(6)]
        opened.wait(20)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert time.monotonic() - begin < 5
        # Each ended in good order, and none with the job's end: the client knows that it may resume.
        assert all("event: end" not in stream.result() for stream in streams)


def follow(url, job_id, opened):
    with (
        calling(url, KEY) as api,
        api.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream,
    ):
        lines = stream.iter_lines()
        next(line for line in lines if line == "id: 1")
        opened.wait(20)
        return list(lines)
