"""Where the command line finds the service and its key."""

import json
from pathlib import Path

import pytest

from client import BadAddress, NoKey, Temper
from client.credentials import find_credentials, point_credentials_at


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credentials file of a service in a data folder, and an environment that says nothing else."""
    for name in ("TEMPER_URL", "TEMPER_API_KEY", "TEMPER_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEMPER_DATA_DIR", str(tmp_path))
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"url": "http://127.0.0.1:9", "api_key": "tmp_file"}))
    return file


def test_what_the_service_left_is_found(file: Path) -> None:
    assert find_credentials().url == "http://127.0.0.1:9"
    assert find_credentials().api_key == "tmp_file"
    assert find_credentials("http://127.0.0.1:9/").api_key == "tmp_file"


def test_environment_goes_before_the_file_and_arguments_before_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_API_KEY", "tmp_environment")
    assert find_credentials().url == "http://127.0.0.1:9"
    assert find_credentials().api_key == "tmp_environment"
    monkeypatch.setenv("TEMPER_URL", "http://elsewhere")
    assert find_credentials().url == "http://elsewhere"
    assert find_credentials("http://here", "tmp_given").url == "http://here"
    assert find_credentials("http://here", "tmp_given").api_key == "tmp_given"


def test_key_of_this_machine_goes_to_no_other(file: Path) -> None:
    with pytest.raises(NoKey, match="no API key for http://elsewhere: set TEMPER_API_KEY"):
        find_credentials("http://elsewhere")


def test_no_key_anywhere_says_where_keys_come_from(file: Path) -> None:
    file.unlink()
    with pytest.raises(NoKey, match="temper serve"):
        find_credentials()


def test_broken_file_is_told(file: Path) -> None:
    file.write_text("{}")
    with pytest.raises(NoKey, match="cannot be read"):
        find_credentials()


def test_key_is_not_shown_by_accident(file: Path) -> None:
    assert "tmp_file" not in repr(find_credentials())


def test_service_that_moved_keeps_its_key(file: Path) -> None:
    file.chmod(0o600)
    point_credentials_at("http://127.0.0.1:10", file)
    assert find_credentials().url == "http://127.0.0.1:10"
    assert find_credentials().api_key == "tmp_file"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_that_cannot_be_a_header_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_API_KEY", "é")
    with pytest.raises(NoKey, match="TEMPER_API_KEY"):
        find_credentials("http://127.0.0.1:1")


def test_an_address_that_is_none_is_refused_in_words() -> None:
    with pytest.raises(BadAddress, match="TEMPER_URL"):
        Temper("http://a:b", "tmp_key")


@pytest.mark.parametrize("address", ["127.0.0.1:8765", "localhost:8765/", "ftp://localhost:8765"])
def test_an_address_without_http_is_told_so(file: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("TEMPER_URL", address)
    with pytest.raises(BadAddress, match=r"write TEMPER_URL=http://[^:/]+:8765"):
        find_credentials()
