"""Where the service is and with which key: given, from the environment, or from the file that the service wrote."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.errors import NoKey

DEFAULT_URL = "http://127.0.0.1:8765"


class Credentials(BaseModel):
    """Where the service is and with which key: also what its file holds, for the command line of its own machine."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str
    api_key: str = Field(repr=False, pattern=r"^[!-~]+$")  # it goes into a header


def data_dir() -> Path:
    """Say where the service on this machine keeps everything."""
    return Path(os.environ.get("TEMPER_DATA_DIR") or Path.home() / ".temper")


def credentials_file(folder: Path | None = None) -> Path:
    """Say where the service on this machine leaves its address and first key: by default, in its data folder."""
    return Path(os.environ.get("TEMPER_CREDENTIALS_FILE") or (folder or data_dir()) / "credentials.json")


def find_credentials(url: str | None = None, api_key: str | None = None) -> Credentials:
    """Take what is given, else TEMPER_URL and TEMPER_API_KEY, else the credentials file.

    The file's key goes to the file's address only: a key is not for whoever TEMPER_URL names. Raises NoKey.
    """
    url = url or os.environ.get("TEMPER_URL")
    api_key = api_key or os.environ.get("TEMPER_API_KEY")
    if url and api_key:
        return _given(url, api_key)
    path = credentials_file()
    file = _read(path)
    if api_key:
        return _given(file.url if file else DEFAULT_URL, api_key)
    if file is None:
        raise NoKey(
            f"no API key: set TEMPER_API_KEY, or start the service here with `temper serve`, which makes a key and "
            f"leaves it in {path}"
        )
    if url and url.rstrip("/") != file.url.rstrip("/"):
        raise NoKey(f"no API key for {url}: set TEMPER_API_KEY; the one in {path} is for {file.url}")
    return file


def point_credentials_at(url: str, path: Path) -> None:
    """Note in the credentials file, where there is one, that the service is now reached at `url`."""
    file = _read(path)
    if file and file.url != url:
        path.write_text(file.model_copy(update={"url": url}).model_dump_json())


def _given(url: str, api_key: str) -> Credentials:
    try:
        return Credentials(url=url, api_key=api_key)
    except ValidationError as error:
        raise NoKey("the API key has a character that no key has: set TEMPER_API_KEY to the key as made") from error


def _read(path: Path) -> Credentials | None:
    try:
        return Credentials.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise NoKey(f"{path} cannot be read as {{url, api_key}}: set TEMPER_API_KEY instead") from error
