"""The doctor tells what is well from what is not, and never without a remedy."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from pydantic import SecretStr

from app.operations import doctor
from app.operations.doctor import (
    check_confinement,
    check_database,
    check_disk,
    check_queue,
    check_running,
    check_secrets,
    check_settings,
    check_storage,
    inspect,
)
from app.platform.broker import Line
from app.platform.settings import Settings
from tests.support import forked
from tests.support.native import ROOT
from tests.support.scripted_service import scripted_server
from tests.support.servers import free_port

RUNS = (check_confinement,)
CHECK = [sys.executable, "-m", "core.confinement", "--check"]
FAST = (check_database, check_queue, check_storage, check_disk, check_secrets)


def look(settings, *checks, **change):
    found = list(inspect(settings.model_copy(update=change), checks))
    assert all(finding.remedy for finding in found if finding.level != "ok")
    return {finding.part: finding for finding in found}


@pytest.fixture
def broker(valkey_server):
    """An empty broker."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
        yield client
        client.flushall()


def test_all_is_well(settings, database, broker, valkey_server):
    found = look(settings, *FAST, broker_url=valkey_server.url)
    assert list(found) == ["database", "schema", "queue", "storage", "downloads", "disk", "secrets"]
    assert {finding.level for part, finding in found.items() if part != "disk"} == {"ok"}
    assert list(settings.objects_dir.rglob("*.*")) == []


def test_a_schema_of_an_earlier_version_is_told_with_its_remedy(settings, database, later_schema, monkeypatch, capsys):
    found = look(settings, check_database)
    assert (found["schema"].level, found["schema"].remedy) == ("fail", "run `temper migrate`")
    versions = "schema {}, this version needs {}".format(*later_schema)
    assert f"has {versions}" in found["schema"].message
    monkeypatch.setenv("TEMPER_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("TEMPER_DATABASE_URL", settings.database_url)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    monkeypatch.setattr(doctor, "inspect", lambda settings: inspect(settings, [check_database]))
    with pytest.raises(SystemExit, match="True"):
        doctor.main()
    refused = capsys.readouterr().out
    assert f"the database has {versions}\n               run `temper migrate`" in refused


def test_servers_that_are_away_are_told_without_their_passwords(settings):
    port = free_port()
    found = look(
        settings,
        *FAST,
        database_url=f"postgresql+psycopg://temper:hunter22hunter22@127.0.0.1:{port}/temper",
        broker_url=f"redis://:hunter22hunter22@127.0.0.1:{port}/0",
        s3_bucket="temper",
        s3_endpoint_url=f"http://127.0.0.1:{port}",
        s3_access_key_id=SecretStr("key"),
        s3_secret_access_key=SecretStr("hunter22hunter22"),
    )
    assert {part for part, finding in found.items() if finding.level == "fail"} == {"database", "queue", "storage"}
    assert "TEMPER_DATABASE_URL" in found["database"].remedy
    assert "TEMPER_BROKER_URL" in found["queue"].remedy
    assert "TEMPER_S3_" in found["storage"].remedy
    assert "hunter22" not in str(found)


def test_a_bucket_is_fetched_from_as_a_client_would(settings, s3_server):
    bucket = s3_server.create_bucket()
    for name in ("s3_access_key_id", "s3_secret_access_key"):
        bucket[name] = SecretStr(bucket[name])
    found = look(settings, check_storage, **bucket)
    assert [finding.level for finding in found.values()] == ["ok", "ok"]
    found = look(settings, check_storage, **bucket, s3_public_endpoint_url=f"http://127.0.0.1:{free_port()}")
    assert (found["storage"].level, found["downloads"].level) == ("ok", "fail")
    assert "TEMPER_STORAGE_PROXY" in found["downloads"].remedy


def test_the_doctor_notices_rings_without_a_listener(settings, broker, valkey_server):
    line = Line(valkey_server.url)
    for _ in range(3):
        line.ring("gpu")
    line.hang_up()
    assert look(settings, check_queue, broker_url=valkey_server.url)["queue"].level == "warn"


def test_runs_that_are_confined_are_well_and_gaps_are_told(settings, tmp_path):
    key = tmp_path / "credentials.json"
    key.touch(mode=0o600)
    (tmp_path / "temper_first_api_key").touch()
    gaps = json.loads(subprocess.run(CHECK, capture_output=True, text=True, check=True).stdout)
    found = list(inspect(settings.model_copy(update={"credentials_file": key, "secrets_dir": tmp_path}), RUNS))
    assert [(each.level, each.message) for each in found] == [("warn", gap) for gap in gaps] or [
        ("ok", "runs and inspections open no secret, and reach no server and no other process")
    ]
    assert all(each.remedy for each in found if each.level == "warn")


@pytest.mark.parametrize("interface", [0, 2, 5, 7])
def test_a_kernel_that_cannot_confine_is_told_with_its_remedy(settings, interface, monkeypatch):
    """With what `core.confinement --check` prints on a kernel of that version of Landlock."""
    of_that_kernel = f"from core import confinement; confinement.version = lambda: {interface}; confinement.main()"
    monkeypatch.setattr(doctor, "_run", lambda *arguments: answer(*arguments, check=of_that_kernel))
    found = list(inspect(settings, RUNS))
    told = " ".join(each.message for each in found)
    # Whether there can be an own network is for the system to say.
    found = [each for each in found if "several processes" not in each.message]
    assert {each.level for each in found} <= {"ok" if interface == 7 else "warn"}
    assert all(each.remedy for each in found if each.level != "ok")
    assert ("no Landlock" in told, "can empty files" in told) == (interface == 0, interface == 2)
    assert ("signals" in told) == (interface < 6)


def answer(*arguments, check):
    if arguments[-1] != "--check":
        return "[]"
    command = [sys.executable, "-c", check, "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_secret_that_a_run_can_open_is_told(settings, tmp_path, monkeypatch):
    """One that lies among the packages of Python, for example."""
    monkeypatch.setattr(doctor, "_secret_files", lambda _: [Path(sys.prefix, "pyvenv.cfg")])
    (found,) = [each for each in inspect(settings, RUNS) if each.level == "fail"]
    assert f"a run can open {sys.prefix}/pyvenv.cfg" in found.message
    assert found.remedy


def test_a_full_disk_is_noticed(settings, monkeypatch):
    monkeypatch.setattr(doctor, "_LITTLE", 1e18)
    assert look(settings, check_disk)["disk"].level == "warn"
    monkeypatch.setattr(doctor, "_TOO_LITTLE", 1e18)
    assert look(settings, check_disk)["disk"].level == "fail"


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("postgresql+psycopg://temper:postgres@db/temper", "warn"),
        ("postgresql+psycopg://temper@db/temper", "warn"),
        ("postgresql+psycopg://postgres@127.0.0.1/temper", "ok"),
        ("postgresql+psycopg://temper:Tr9mVw2sKq8xLz4p@db/temper", "ok"),
    ],
)
def test_a_password_that_is_easy_to_guess_is_noticed(settings, url, level):
    assert look(settings, check_secrets, database_url=url)["secrets"].level == level


def test_a_key_that_others_can_read_is_noticed(settings, tmp_path):
    file = tmp_path / "credentials.json"
    file.touch(mode=0o644)
    found = look(settings, check_secrets, credentials_file=file)["secrets"]
    assert (found.level, found.remedy[:9]) == ("fail", "chmod 600")


def test_it_exits_by_what_it_finds(tmp_path):
    folder = tmp_path / "data"
    environment = {"PATH": "", "TEMPER_DATA_DIR": str(folder), "TEMPER_RESOURCE_CLASS": "cpu"}
    environment |= {"TEMPER_PORT": str(free_port()), "TEMPER_STORAGE": "x"}
    told = forked.run(["-m", "app.operations.doctor", "--json"], tmp_path, cwd=ROOT, env=environment)
    found = {finding["part"]: finding["level"] for finding in json.loads(told.stdout)}
    assert (told.returncode, found["database"], found["storage"], found["gpu"]) == (1, "fail", "warn", "ok")
    assert (found["service"], found["settings"]) == ("warn", "warn")
    assert not folder.exists()
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".db"] == []


def test_a_variable_that_is_no_setting_is_named_with_the_one_that_is_meant(settings, monkeypatch):
    monkeypatch.setenv("TEMPER_LEASE_SECOND", "30")
    monkeypatch.setenv("TEMPER_API_KEY", "tmp_x")
    found = look(settings, check_settings)["settings"]
    assert (found.level, found.message) == ("warn", "TEMPER_LEASE_SECOND is not a setting, and changes nothing")
    assert found.remedy == "did you mean TEMPER_LEASE_SECONDS? If not, remove it"
    monkeypatch.delenv("TEMPER_LEASE_SECOND")
    assert look(settings, check_settings)["settings"].level == "ok"


def test_it_says_whether_something_is_running(settings, server):
    port = urlsplit(server).port
    assert look(settings, check_running, port=port)["service"].message == f"the API answers at http://127.0.0.1:{port}"
    away = look(settings, check_running, port=free_port())["service"]
    assert (away.level, away.message.partition(":")[0]) == ("warn", "nothing is running at http")
    with scripted_server() as other:
        other.expect(lambda request: request.answer(["not", "Temper"]))
        stranger = look(settings, check_running, port=urlsplit(other.url).port)["service"]
    assert "is not Temper" in stranger.message


def test_looking_at_an_instance_that_is_not_there_makes_nothing(tmp_path):
    folder = tmp_path / "data"
    settings = Settings(data_dir=folder)
    found = look(settings, check_database, check_storage, check_disk)
    assert "there is no database yet" in found["database"].message
    assert not folder.exists()
