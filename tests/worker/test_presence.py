"""The worker's row while it lives, stops and vanishes, and what the row says."""

import time
from threading import Event

import pytest

from app.jobs.requirements import Capacity
from app.jobs.workers import Device
from app.storage import LocalStore
from app.tables import Worker
from tests.support.native import FAKE_WORKER, instance
from tests.support.processes import wait_until
from worker import description, host
from worker.presence import Presence
from worker.workplace import Workplace

DRIVER = """#!/bin/sh
echo "GPU-aaaa1111, NVIDIA H200, 143771"
echo "GPU-bbbb2222, NVIDIA L4, 23034"
echo "GPU-cccc3333, NVIDIA GB10, [N/A]"
"""
H200, L4, GB10 = Device("NVIDIA H200", 143771 << 20), Device("NVIDIA L4", 23034 << 20), Device("NVIDIA GB10", None)


@pytest.fixture
def workplace(settings, database):
    return Workplace(settings, database, LocalStore(settings.objects_dir), None, stopping=Event())


def rows(database):
    with database.reading() as session:
        return session.query(Worker).all()


def test_a_worker_has_a_row_while_it_lives_and_none_afterwards(workplace, database):
    with Presence(workplace):
        wait_until(lambda: rows(database))
        (row,) = rows(database)
        assert (row.id, row.name) == (workplace.description.id, workplace.description.name)
        assert row.capabilities == ["architecture:timm"]
        assert {"python", "torch"} <= row.versions.keys()
        assert not row.is_stopping
        wait_until(lambda: rows(database)[0].heartbeat_at > row.heartbeat_at)
        workplace.stopping.set()
        wait_until(lambda: rows(database)[0].is_stopping)
    assert rows(database) == []


def test_a_database_of_another_schema_is_left_alone(workplace, database, monkeypatch):
    class Other:
        complaint = "run `temper migrate`"

    monkeypatch.setattr(database, "schema", Other)
    with Presence(workplace):
        time.sleep(0.3)
        assert rows(database) == []


def test_an_error_of_ours_does_not_end_the_heartbeat(workplace, database, monkeypatch, caplog):
    schema = database.schema
    monkeypatch.setattr(database, "schema", lambda: 1 / 0)
    with Presence(workplace):
        wait_until(lambda: "ZeroDivisionError" in caplog.text)
        monkeypatch.setattr(database, "schema", schema)
        wait_until(lambda: rows(database))


@pytest.mark.parametrize(
    ("visible", "chosen", "devices"),
    [
        (None, {}, [H200, L4, GB10]),
        ("1,0", {}, [L4, H200]),
        ("GPU-bbbb", {}, [L4]),
        ("1,0", {"gpus": 1}, [L4]),
        ("7", {}, [Device("NVIDIA GPU", None)]),
        ("", {}, []),
        ("-1", {}, []),
        (None, {"resource_class": "cpu"}, []),
    ],
)
def test_a_worker_has_the_gpus_that_its_runs_will_see(settings, tmp_path, monkeypatch, visible, chosen, devices):
    driver = tmp_path / "driver"
    for number in range(3):
        (driver / "gpus" / str(number)).mkdir(parents=True)
    (tmp_path / "nvidia-smi").write_text(DRIVER)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(host, "_NVIDIA", driver)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = description.describe(settings.model_copy(update=chosen))
    assert list(found.devices) == devices
    assert found.capacity == Capacity(found.capabilities, tuple(device.memory for device in devices))


def test_without_the_drivers_program_gpus_are_counted_all_the_same(settings, tmp_path, monkeypatch):
    (tmp_path / "gpus" / "0").mkdir(parents=True)
    monkeypatch.setattr(host, "_NVIDIA", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert host.read_gpus() == [Device("NVIDIA GPU", None)]


def test_a_killed_worker_is_shown_as_lost_and_a_stopped_one_not_at_all(tmp_path):
    with instance(tmp_path, *FAKE_WORKER, lease_seconds=2) as temper:
        temper.start_api()
        with temper.client() as api:

            def statuses():
                return [worker["status"] for worker in api.get("/workers").json()["data"]]

            assert statuses() == []
            with temper.worker() as worker:
                wait_until(lambda: statuses() == ["alive"], seconds=20)
                worker.terminate()
                assert worker.wait(20) == 0
            assert statuses() == []
            with temper.worker() as worker:
                wait_until(lambda: statuses() == ["alive"], seconds=20)
                worker.kill()
                worker.wait()
                wait_until(lambda: statuses() == ["lost"], seconds=20)
            assert api.get("/readyz").json()["details"] == []
