"""Address of the service and API key: from arguments, the environment, or the file that the service wrote."""

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from client.errors import BadAddress, NoKey

DEFAULT_URL = "http://127.0.0.1:8765"
_HEADER_VALUE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Credentials:
    """Address of a service and an API key for it. Raises ValueError if the key cannot be sent in a header."""

    url: str
    api_key: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _HEADER_VALUE.fullmatch(self.api_key):
            raise ValueError("the API key contains an invalid character")


def data_dir() -> Path:
    """Return the data folder of the service on this machine."""
    return Path(os.environ.get("TEMPER_DATA_DIR") or Path.home() / ".temper")


def credentials_file(folder: Path | None = None) -> Path:
    """Return the file in which the service on this machine stores its address and first key, by default in its data
    folder."""
    return Path(os.environ.get("TEMPER_CREDENTIALS_FILE") or (folder or data_dir()) / "credentials.json")


def find_credentials(url: str | None = None, api_key: str | None = None) -> Credentials:
    """Take the arguments, else TEMPER_URL and TEMPER_API_KEY, else the credentials file.

    The key in the file is sent only to the address in the file, not to another address that TEMPER_URL names. Raises
    NoKey, BadAddress.
    """
    url = url or os.environ.get("TEMPER_URL")
    if url and not url.startswith(("http://", "https://")):
        whole = f"http://{url.rpartition('://')[2]}"
        raise BadAddress(f"{url} is not the address of a service: write TEMPER_URL={whole}, or https:// in its place")
    api_key = api_key or os.environ.get("TEMPER_API_KEY")
    if url and api_key:
        return _given(url, api_key)
    path = credentials_file()
    file = read_credentials(path)
    if api_key:
        return _given(file.url if file else DEFAULT_URL, api_key)
    if file is None:
        raise NoKey(
            f"no API key: set TEMPER_API_KEY, or start the service here with `temper serve`, which makes a key and "
            f"stores it in {path}"
        )
    if url and url.rstrip("/") != file.url.rstrip("/"):
        raise NoKey(f"no API key for {url}: set TEMPER_API_KEY; the key in {path} is for {file.url}")
    return file


def read_credentials(path: Path) -> Credentials | None:
    """Read a credentials file; return None if there is none. Raises NoKey."""
    try:
        content = json.loads(path.read_bytes())
        return Credentials(str(content["url"]), str(content["api_key"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoKey(f"{path} cannot be read as {{url, api_key}}: set TEMPER_API_KEY instead") from error


def point_credentials_at(url: str, path: Path) -> None:
    """Change the address in the credentials file, if there is one, to `url`."""
    file = read_credentials(path)
    if file and file.url != url:
        path.write_text(json.dumps(asdict(replace(file, url=url))))


def _given(url: str, api_key: str) -> Credentials:
    try:
        return Credentials(url=url, api_key=api_key)
    except ValueError as error:
        raise NoKey("the API key contains an invalid character: copy the key again to TEMPER_API_KEY") from error
