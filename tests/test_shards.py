"""A real evaluation, shared by two workers of an instance: its report is that of one process that made it all."""

import json
import os
import subprocess
import sys

import pytest

from app.platform.database import Database
from app.storage import LocalStore
from tests.support import invariants
from tests.support.native import ROOT, WORKER, finish, instance
from tests.support.processes import wait_until

SPEC = {
    "kind": "evaluate",
    "base_model": "digits-cnn-linf",
    "evaluation": {"protocol": "paper", "examples": 12, "batch_size": 3},
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_give_the_very_report_of_one_process(tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC))
    command = [sys.executable, "-m", "core", "evaluate", str(spec), "--output", str(tmp_path / "alone")]
    with instance(tmp_path, *WORKER, shard_points=4) as temper:
        temper.start_api()
        with temper.client() as api, temper.worker(), temper.worker():
            job_id = api.post("/jobs", json=SPEC).json()["id"]
            job = finish(api, job_id, seconds=240)
            assert (job["status"], [shard["number"] for shard in job["shards"]]) == ("succeeded", [1, 2, 3])
            assert len({shard["worker"] for shard in job["shards"]}) == 2
            shared = api.get(f"/jobs/{job_id}/report").json()
        database = Database(f"sqlite:///{tmp_path}/data/temper.db")
        invariants.check(database, LocalStore(tmp_path / "data" / "objects"))
        database.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert shared["after"]["examples"] == 12
    assert without_times(shared) == without_times(alone)
    assert job["results"]["after"]["union"] == shared["after"]["union"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_evaluation_whose_worker_stops_goes_on_from_its_verdicts_with_another(tmp_path):
    with instance(tmp_path, *WORKER, shard_points=0) as temper:
        temper.start_api()
        with temper.client() as api:
            job_id = api.post("/jobs", json=SPEC).json()["id"]
            with temper.worker() as worker:
                wait_until(lambda: done(api, job_id) >= 2, seconds=120)
                worker.terminate()
                worker.wait(60)
            assert api.get(f"/jobs/{job_id}").json()["status"] == "queued"
            with temper.worker():
                assert finish(api, job_id, seconds=240)["status"] == "succeeded"
            first, second = api.get(f"/jobs/{job_id}/attempts").json()["data"]
            told = api.get(f"/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]
        database = Database(f"sqlite:///{tmp_path}/data/temper.db")
        invariants.check(database, LocalStore(tmp_path / "data" / "objects"))
        database.close()
    assert (first["outcome"], first["resumed_step"]) == ("handed_back", None)
    assert second["resumed_step"] >= 2
    states = [event["data"]["step"] for event in told if event["type"] == "saved" and event["data"]["kind"] == "state"]
    assert second["resumed_step"] in states


def done(api, job_id):
    job = api.get(f"/jobs/{job_id}").json()
    assert not job["is_terminal"], "it ended before its worker was stopped"
    return job["progress"]["attacks_done"] if job["progress"] else 0


def without_times(report):
    """A report without what differs from run to run: how long things took."""
    if isinstance(report, dict):
        return {name: without_times(value) for name, value in report.items() if name != "seconds"}
    return [without_times(each) for each in report] if isinstance(report, list) else report
