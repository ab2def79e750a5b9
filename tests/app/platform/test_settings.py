"""Settings come from the environment, and a wrong one is told in a sentence."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from pydantic import SecretStr
from sqlalchemy import delete, make_url, select

from app.http.authentication import first_key, tell_first_key
from app.platform.database import open_database
from app.platform.settings import HEARTBEATS_PER_LEASE, Settings
from app.tables import ApiKey


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TEMPER_PORT", "many", "TEMPER_PORT: Input should be a valid integer"),
        ("TEMPER_CONCURRENCY", "0", "TEMPER_CONCURRENCY: Input should be greater than or equal to 1"),
        ("TEMPER_DATABASE_URL", "nonsense", "TEMPER_DATABASE_URL: not a database .*; write sqlite:////PATH/temper.db"),
        ("TEMPER_DATABASE_URL", "nosuch://here/x", "TEMPER_DATABASE_URL: not a database .*nosuch"),
        ("TEMPER_DATABASE_URL", "mssql+pymssql://here/x", "TEMPER_DATABASE_URL: not a database .*pymssql"),
        ("TEMPER_DATABASE_URL", "sqlite://", "TEMPER_DATABASE_URL: .* must be a file"),
        ("TEMPER_S3_ENDPOINT_URL", "storage:8333", "TEMPER_S3_ENDPOINT_URL: write http:// or https://, a host"),
        ("TEMPER_S3_PUBLIC_ENDPOINT_URL", "http://here/path", "TEMPER_S3_PUBLIC_ENDPOINT_URL: .* no path"),
        ("TEMPER_S3_SECRET_ACCESS_KEY", "x", "TEMPER_S3_SECRET_ACCESS_KEY: set TEMPER_S3_ACCESS_KEY_ID and .* both"),
        ("TEMPER_S3_ACCESS_KEY_ID", "x", "TEMPER_S3_SECRET_ACCESS_KEY: set TEMPER_S3_ACCESS_KEY_ID and .* both"),
        ("TEMPER_BROKER_URL", "valkey://here", "TEMPER_BROKER_URL: not a Redis or Valkey: write redis://HOST:6379/0"),
        ("TEMPER_FIRST_API_KEY", "secret", "TEMPER_FIRST_API_KEY: not an API key"),
        ("TEMPER_DATA_DIR", "/proc/nowhere", "TEMPER_DATA_DIR: cannot make /proc/nowhere"),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv("TEMPER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        Settings.from_environment()


def test_a_wrong_setting_is_the_only_one_that_is_blamed(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TEMPER_RATE_LIMIT", "x")
    with pytest.raises(SystemExit) as end:
        Settings.from_environment()
    assert [line.partition(":")[0] for line in str(end.value).splitlines()] == ["TEMPER_RATE_LIMIT"]


def test_the_database_lies_in_the_data_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_DATA_DIR", str(tmp_path))
    settings = Settings.from_environment()
    assert settings.database_url == f"sqlite:///{tmp_path}/temper.db"
    assert settings.host == "127.0.0.1"
    assert settings.models_dir.is_dir()


def test_a_lease_is_renewed_at_least_three_times_within_its_length(tmp_path, monkeypatch):
    # An instance of an earlier test may still be open, with a value that suits tests.
    monkeypatch.setattr("app.platform.settings.HEARTBEATS_PER_LEASE", HEARTBEATS_PER_LEASE)
    settings = Settings(data_dir=tmp_path)
    assert (settings.lease_seconds, settings.heartbeat_seconds) == (60, 10)
    assert HEARTBEATS_PER_LEASE >= 3


def test_secrets_can_come_from_files_and_are_not_shown(tmp_path, monkeypatch):
    (tmp_path / "temper_s3_access_key_id").write_text("the key")
    (tmp_path / "temper_s3_secret_access_key").write_text("the secret\n")
    monkeypatch.setenv("TEMPER_SECRETS_DIR", str(tmp_path))
    settings = Settings()
    assert settings.s3_access_key_id.get_secret_value() == "the key"
    assert settings.s3_secret_access_key.get_secret_value() == "the secret"
    assert "the secret" not in repr(settings)


def test_a_password_from_a_file_is_put_into_its_url(tmp_path, monkeypatch):
    (tmp_path / "temper_database_password").write_text("pass/word@1")
    (tmp_path / "temper_broker_password").write_text("hush\n")
    monkeypatch.setenv("TEMPER_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("TEMPER_DATABASE_URL", "postgresql+psycopg://temper@db:5432/temper")
    monkeypatch.setenv("TEMPER_BROKER_URL", "redis://queue:6379/0")
    settings = Settings()
    assert make_url(settings.database_url).password == "pass/word@1"
    assert (make_url(settings.database_url).username, make_url(settings.database_url).host) == ("temper", "db")
    assert settings.broker_url == "redis://:hush@queue:6379/0"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql+psycopg://temper:other@db/temper",
            "TEMPER_DATABASE_URL: contains a password, and TEMPER_DATABASE_PASSWORD is set",
        ),
        ("sqlite:////data/temper.db", "TEMPER_DATABASE_URL: names no server that would take TEMPER_DATABASE_PASSWORD"),
    ],
)
def test_a_password_without_a_place_is_refused(tmp_path, monkeypatch, url, message):
    monkeypatch.setenv("TEMPER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TEMPER_DATABASE_PASSWORD", "hush")
    monkeypatch.setenv("TEMPER_DATABASE_URL", url)
    with pytest.raises(SystemExit, match=message) as end:
        Settings.from_environment()
    assert "hush" not in str(end.value)


def test_a_folder_of_secrets_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match=r"TEMPER_SECRETS_DIR: there is no folder .*none"):
        Settings.from_environment()


def test_a_database_that_cannot_be_opened_is_told_in_a_sentence():
    with pytest.raises(SystemExit, match="cannot be used: unable to open database file"):
        open_database("sqlite:////proc/nowhere/temper.db")


def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path):
    (tmp_path / "temper.db").write_text("something else " * 100)
    with pytest.raises(SystemExit, match="cannot be used: file is not a database"):
        open_database(f"sqlite:///{tmp_path}/temper.db")


def test_only_the_first_start_makes_a_key(database, settings, tmp_path):
    file = tmp_path / "new" / "credentials.json"
    settings = settings.model_copy(update={"credentials_file": file})
    key = first_key(database, settings)
    assert [len(part) for part in key.split("_")] == [3, 8, 32, 6]
    assert json.loads(file.read_text()) == {"url": "http://127.0.0.1:8765", "api_key": key}
    assert file.stat().st_mode & 0o777 == 0o600
    assert first_key(database, settings) is None


def test_many_that_start_at_once_make_one_key(database, settings):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: first_key(database, settings), range(8)))
    assert len([key for key in keys if key]) == 1
    with database.reading() as session:
        assert len(session.scalars(select(ApiKey)).all()) == 1


def test_the_first_key_can_be_given_and_is_then_not_printed(database, settings, api, capsys):
    with database.writing() as session:
        session.execute(delete(ApiKey))
    given = f"tmp_abcdefgh_{'x' * 32}"
    tell_first_key(database, settings.model_copy(update={"first_api_key": SecretStr(given)}))
    assert capsys.readouterr().out == ""
    assert api.get("/jobs").status_code == 401
    assert api.get("/jobs", headers={"Authorization": f"Bearer {given}"}).status_code == 200


def test_the_key_itself_is_nowhere_in_the_database(database, settings):
    key = first_key(database, settings)
    database.close()
    secret = key.split("_")[2].encode()
    assert not [file for file in settings.data_dir.glob("temper.db*") if secret in file.read_bytes()]


def test_the_data_folder_and_the_database_are_closed_to_others(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    (folder / "temper.db").touch(0o644)
    settings = Settings(data_dir=folder)
    settings.make_folders()
    with closing(open_database(settings.database_url)) as database, database.writing() as session:
        session.execute(delete(ApiKey))
        assert folder.stat().st_mode & 0o777 == 0o700
        files = list(folder.glob("temper.db*"))
        assert {file.name for file in files} == {"temper.db", "temper.db-wal", "temper.db-shm"}
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_folder_of_all_users_stays_open(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    Settings(data_dir=folder).make_folders()
    assert folder.stat().st_mode & 0o7777 == 0o1777
