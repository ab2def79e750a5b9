"""A real job whose training process and worker are killed at random ends with the weights of an undisturbed one."""

import os
import random
import signal
import time

import pytest
from safetensors.numpy import load

from app.platform.database import Database
from app.storage import LocalStore
from tests.support import invariants
from tests.support.native import WORKER, finish, instance
from tests.support.processes import processes_with, wait_until

KILLS = 10
SPEC = {
    "kind": "train",
    "architecture": "digits-cnn",
    "dataset": "digits",
    "epochs": 100,
    "train_examples": 256,
    "save_minutes": 0.01,
    "evaluation": {"protocol": "fast", "examples": 8},
    "seed": 7,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_is_killed_ten_times_ends_with_the_weights_of_one_that_is_not(tmp_path):
    chance = random.Random(20261125)
    settings = {"lease_seconds": 3, "max_crashes": 50}
    constants = {
        "app.jobs.claims.MAX_CRASHES_IN_PLACE": 20,
        "app.jobs.claims.CRASH_BACKOFF_SECONDS": 0,
    }
    with instance(tmp_path, *WORKER, constants=constants, **settings) as temper:
        temper.start_api()
        with temper.client() as api:
            calm = api.post("/jobs", json=SPEC).json()["id"]
            with temper.worker():
                assert finish(api, calm, seconds=300)["status"] == "succeeded"
            killed = api.post("/jobs", json=SPEC).json()["id"]
            worker = temper.start_worker()
            for _ in range(KILLS):
                wait_until(lambda: steps(api, killed) > 0 and processes_with(killed), seconds=60)
                time.sleep(chance.uniform(0, 2))
                attempt = api.get(f"/jobs/{killed}").json()["attempt"]
                if chance.random() < 0.5:
                    worker.kill()
                    worker.wait()
                    worker = temper.start_worker()
                else:
                    for process in processes_with(killed):
                        os.kill(process, signal.SIGKILL)
                wait_until(lambda attempt=attempt: api.get(f"/jobs/{killed}").json()["attempt"] > attempt, seconds=60)
            job = finish(api, killed, seconds=300)
            assert (job["status"], job["crashes"]) == ("succeeded", KILLS)
            ours, theirs = (weights(api, job_id) for job_id in (killed, calm))
            assert ours.keys() == theirs.keys()
            assert all((ours[name] == theirs[name]).all() for name in ours)
        database = Database(f"sqlite:///{tmp_path}/data/temper.db")
        invariants.check(database, LocalStore(tmp_path / "data" / "objects"))
        database.close()


def steps(api, job_id):
    job = api.get(f"/jobs/{job_id}").json()
    assert not job["is_terminal"], "it ended before it was killed often enough"
    return job["progress"]["step"] if job["status"] == "running" and job["progress"] else 0


def weights(api, job_id):
    checkpoint = api.get(f"/jobs/{job_id}").json()["checkpoint"]
    return load(api.get(f"/checkpoints/{checkpoint}/download").content)
