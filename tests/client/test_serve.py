"""`temper serve` keeps its two processes together, and leaves none behind."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.live_service import Service, eventually, run_temper, start_service


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_worker_that_died_is_replaced_and_sigterm_leaves_nothing(tmp_path: Path) -> None:
    service = start_service(tmp_path)
    first = service.children()
    os.kill(first["worker.polling"], signal.SIGKILL)
    eventually(lambda: service.children().get("worker.polling", first["worker.polling"]) != first["worker.polling"])
    assert service.children()["app"] == first["app"]
    second = service.children()
    service.process.terminate()
    assert service.process.wait(30) == 0
    assert not any(is_running(pid) for pid in second.values())
    assert "the worker has ended with status -9" in (tmp_path / "serve.log").read_text()


@pytest.mark.parametrize(
    ("sent", "status"), [pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_is_left_behind(tmp_path: Path, sent: int, status: int) -> None:
    service = start_service(tmp_path)
    children = service.children()
    service.process.send_signal(sent)
    assert service.process.wait(30) == status
    eventually(lambda: not any(is_running(pid) for pid in children.values()))


def test_api_that_ends_takes_the_rest_with_it(tmp_path: Path) -> None:
    service = start_service(tmp_path)
    children = service.children()
    os.kill(children["app"], signal.SIGKILL)
    assert service.process.wait(30) == 1
    assert not is_running(children["worker.polling"])
    assert "the API has ended with status -9" in (tmp_path / "serve.log").read_text()


def test_taken_port_is_told(service: Service, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    refused = run_temper("serve", "--port", port, "--data-dir", str(tmp_path), environment=os.environ)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in refused.stderr
    assert "--port" in refused.stderr


def test_credentials_are_for_their_owner_only(service: Service) -> None:
    assert (service.folder / "credentials.json").stat().st_mode & 0o777 == 0o600


def test_folder_that_is_served_already_is_refused(service: Service) -> None:
    before = (service.folder / "credentials.json").read_text()
    refused = run_temper("serve", "--port", "1", "--data-dir", str(service.folder), environment=os.environ)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"another `temper serve` runs in {service.folder}")
    assert (service.folder / "credentials.json").read_text() == before


def test_host_and_port_come_from_the_environment(service: Service, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    refused = run_temper("serve", "--data-dir", str(tmp_path), environment=os.environ | {"TEMPER_PORT": port})
    assert f"cannot listen on 127.0.0.1 port {port}" in refused.stderr
    refused = run_temper("serve", "--data-dir", str(tmp_path), environment=os.environ | {"TEMPER_HOST": "256.1.1.1"})
    assert refused.stderr.startswith("cannot listen on 256.1.1.1 port 8765")
    assert "running already" not in refused.stderr
    refused = run_temper("serve", "--data-dir", str(tmp_path), environment=os.environ | {"TEMPER_PORT": "65536"})
    assert refused.returncode == 2
