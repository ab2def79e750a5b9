"""A run and an inspection whose code is an intruder's reach no secret, file, server or process of the service."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from core.landlock import SIGNALS, version
from tests.support.instance import calling
from tests.support.intruder import MARK, answers_in, plant, reached
from tests.support.live_service import start_service
from tests.support.native import finish
from worker.processes.child_process import ChildProcess
from worker.processes.confined import confined

EVALUATE = {
    "kind": "evaluate",
    "base_model": "digits-cnn-linf",
    "evaluation": {"protocol": "fast", "examples": 2},
    "eps": {"linf": 0.1},
}
confines = pytest.mark.skipif(version() < SIGNALS, reason="this kernel has no Landlock, or one older than Linux 6.12")


@confines
def test_a_run_of_temper_serve_reaches_nothing(tmp_path, monkeypatch):
    data = tmp_path / "data"
    secrets = tmp_path / "secrets"
    for folder in (data, secrets):
        folder.mkdir()
    (secrets / "temper_first_api_key").write_text(f"tmp_{'a1' * 4}_{'b2' * 16}")
    intruder = tmp_path / "intruder"
    monkeypatch.setenv("PYTHONPATH", str(intruder))
    monkeypatch.setenv("TEMPER_SECRETS_DIR", str(secrets))
    plant(intruder)
    service = start_service(data)
    try:
        (data / "models" / "mine.safetensors").write_bytes(b"weights")
        targets = {
            "files": [
                *(data / name for name in ("temper.db", "serve.lock", "serve.log", "models/mine.safetensors")),
                secrets / "temper_first_api_key",
                "/etc/shadow",
            ],
            "folders": [
                data,
                data / "models",
                data / "objects",
                data / "cache",
                secrets,
                tmp_path,
                Path.home(),
                "/tmp",
            ],
            "ports": [urlsplit(service.url).port],
            "pids": [service.process.pid, os.getpid(), *service.children().values()],
        }
        (intruder / "targets.json").write_text(json.dumps(targets, default=str))
        with calling(service.url, (secrets / "temper_first_api_key").read_text()) as api:
            job = finish(api, api.post("/jobs", json=EVALUATE).json()["id"], 100)
            log = api.get(f"/jobs/{job['id']}/logs").text
        answers = answers_in(log)
        assert reached(answers) == []
        assert len(answers) > 60
        # It is the intruder that was kept out: the run itself went well.
        assert (job["status"], job["failure"]) == ("succeeded", None)
    finally:
        service.stop()


@confines
def test_an_inspection_reaches_nothing(tmp_path, monkeypatch):
    folder, secret = tmp_path / "work", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("hush")
    upload = tmp_path / "upload"
    upload.write_bytes(b"no zip")
    monkeypatch.setenv("PYTHONPATH", str(plant(tmp_path / "intruder", files=[str(secret)], folders=[str(tmp_path)])))
    monkeypatch.setenv("TEMPER_S3_SECRET_ACCESS_KEY", "hush")
    command = confined("core", "inspect-dataset", str(upload), "--output", str(folder), read=[upload], write=folder)
    with ChildProcess(command, stderr=tmp_path / "log", stdout=tmp_path / "output", untrusted=True) as process:
        assert process.wait(60) == 2
    assert reached(answers_in((tmp_path / "log").read_text())) == []
    assert b"no zip" in upload.read_bytes()


def test_the_intruder_reaches_what_is_not_kept_from_it(tmp_path):
    """Without confinement the same code reaches it: the tests above would notice a hole."""
    (tmp_path / "secret").write_text("hush")
    folder = plant(tmp_path / "intruder", files=[str(tmp_path / "secret")], folders=[str(tmp_path)], pids=[os.getpid()])
    done = subprocess.run(
        [sys.executable, "-m", "core", "evaluate", "--no-such-option"],
        env=os.environ | {"PYTHONPATH": str(folder), "TEMPER_DATABASE_PASSWORD": "hush"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert MARK in done.stderr
    found = reached(answers_in(done.stderr))
    assert {f"read {tmp_path}/secret", f"write {tmp_path}/secret", f"make {tmp_path}"} <= set(found)
    assert {f"read /proc/{os.getpid()}/environ", f"signal {os.getpid()}", "secrets in the environment"} <= set(found)
