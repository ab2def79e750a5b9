"""Workers whose clocks are wrong: a lease goes by the database's time alone."""

import time

import pytest

from app.platform.database import Database
from tests.support import invariants
from tests.support.instance import DIGITS
from tests.support.native import FAKE_WORKER, finish, instance
from tests.support.processes import processes_with, wait_until

LEASE = 4
HOUR = 3600
# Python runs this before anything else that is on its path.
WRONG_CLOCK = """
import os, time
from tests.support.constants import install
install()
_shift, _time, _time_ns = int(os.environ["CLOCK_SHIFT"]), time.time, time.time_ns
time.time = lambda: _time() + _shift
time.time_ns = lambda: _time_ns() + _shift * 10**9
"""


@pytest.mark.slow
def test_workers_an_hour_fast_and_slow_neither_take_a_job_early_nor_lose_one_early(tmp_path, postgres_server):
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK)
    url = postgres_server.create_database(f"clock-{time.monotonic_ns()}")
    clocks = {"lease_seconds": LEASE, "migrate_at_start": True}
    constants = {"app.jobs.claims.CRASH_BACKOFF_SECONDS": 0}
    credentials = tmp_path / "credentials" / "local.json"
    chosen = {"database_url": url, "credentials_file": credentials, **clocks}
    with instance(tmp_path, *FAKE_WORKER, constants=constants, **chosen) as temper:
        temper.start_api()
        temper.environment["PYTHONPATH"] = f"{tmp_path}:{temper.environment['PYTHONPATH']}"
        with temper.client() as api:
            calm = api.post("/jobs", json={**DIGITS, "metadata": {"seconds": "0.8"}}).json()["id"]
            workers = []
            for shift in (HOUR, -HOUR):
                temper.environment["CLOCK_SHIFT"] = str(shift)
                workers.append(temper.start_worker())
            # It takes twice as long as its lease, with a worker beside that has nothing to do.
            job = finish(api, calm)
            assert (job["status"], job["attempt"], job["crashes"]) == ("succeeded", 1, 0)
            taken_over = api.post("/jobs", json={**DIGITS, "metadata": {"seconds": "0.3"}}).json()["id"]
            wait_until(lambda: processes_with(taken_over))
            owner = api.get(f"/jobs/{taken_over}/attempts").json()["data"][0]["worker"]
            (holder,) = (worker for worker in workers if owner.endswith(f":{worker.pid}"))
            holder.kill()
            begin = time.monotonic()
            wait_until(lambda: api.get(f"/jobs/{taken_over}").json()["attempt"] == 2)
            # Its last heartbeat was half a second before it was killed, or less.
            assert LEASE - 1.5 < time.monotonic() - begin < LEASE + 5
            assert finish(api, taken_over)["status"] == "succeeded"
    database = Database(url)
    invariants.check(database)
    database.close()
