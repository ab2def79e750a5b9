"""Every environment variable of the service, typed. Each begins with TEMPER_ and has a usable default.

A secret is better a file than a variable: other processes of the same user may read a process's environment.
"""

import os
import re
import stat
import sys
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

_SECRETS = Path("/run/secrets")
"""The folder in which Docker puts secrets."""
HEARTBEATS_PER_LEASE = 6
"""Number of times that a lease is renewed before it would expire."""
_FOLLOWS = "default_factory_not_called"
"""The code of pydantic's error for a default that depends on a setting that is wrong."""
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")

ResourceClass = Literal["gpu", "cpu"]
"""What a worker has; each class has its queue."""
LogFormat = Literal["console", "json"]
"""How the processes log: lines for people, or a JSON object a line."""


class Settings(BaseSettings):
    """How this instance runs."""

    model_config = SettingsConfigDict(
        env_prefix="TEMPER_",
        frozen=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path = Field(default_factory=lambda: Path.home() / ".temper")
    """Folder for all data: database, objects, work folders, local models and data sets."""
    secrets_dir: Path = _SECRETS
    """Folder of secrets, read at the start: a file with a variable's name in lower case sets that variable."""
    database_password: SecretStr | None = None
    """Password of the database's user, in place of one in the URL."""
    database_url: str = Field(default_factory=lambda data: f"sqlite:///{data['data_dir']}/temper.db")
    """SQLAlchemy URL of the database; by default an SQLite file in the data folder."""
    migrate_at_start: bool = Field(default_factory=lambda data: data.get("database_url", "").startswith("sqlite"))
    """Whether API and workers migrate the database when they start; if not, `temper migrate` does."""
    broker_password: SecretStr | None = None
    """Password of the broker, in place of one in the URL."""
    broker_url: str = ""
    """URL of the Redis or Valkey that notifies workers of new jobs; empty for none: then workers poll."""
    log_format: LogFormat = "console"
    """How API and workers log: console, lines for people, or json, an object a line."""
    host: str = "127.0.0.1"
    """Address the API binds to; the default is reachable from this machine only."""
    port: int = Field(default=8765, ge=1, le=65535)
    """Port the API binds to."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses and ranges (`127.0.0.1,10.1.0.0/16`) of proxies in front of the API. Only what they say of a client's
    address, in X-Forwarded-For, is believed."""
    api_workers: int = Field(default=1, ge=1, le=64)
    """API processes that share the port."""
    first_api_key: SecretStr | None = None
    """The first API key; by default a random one. Its form: tmp_, 8 letters or digits, _, 32 letters or digits."""
    credentials_file: Path | None = None
    """Where the first start stores url and key for the local command line, readable by its owner only."""
    rate_limit: int = Field(default=6000, ge=1)
    """Requests that one API key may make in a minute; counted in the broker if there is one."""
    quota_queued_jobs: int | None = Field(default=1000, ge=0)
    """Waiting jobs that a project may have. Like every quota, the default of projects without a limit of their own."""
    quota_running_jobs: int | None = Field(default=None, ge=0)
    """Running jobs that a project may have; further jobs wait. No limit by default."""
    quota_waiting_tasks: int | None = Field(default=100, ge=0)
    """Tasks of a project that may wait, such as inspections of its data sets and models."""
    quota_gpu_seconds_per_month: int | None = Field(default=None, ge=0)
    """GPU seconds that a project may use in a calendar month (UTC); running jobs continue. No limit by default."""
    quota_stored_bytes: int | None = Field(default=100 * 1024**3, ge=0)
    """Bytes that may be stored for a project: its uploads, from their announcement on, and what its jobs have saved."""
    resource_class: ResourceClass = "gpu"
    """What this worker has: gpu, or cpu for one that takes no job of several GPUs."""
    gpus: int | None = Field(default=None, ge=1)
    """Largest number of GPUs of a job that this worker claims; by default as many as its machine has."""
    heartbeat_file: Path = Field(default_factory=lambda data: data["data_dir"] / "worker.heartbeat")
    """File that a worker touches while it polls or runs a job, for a health check."""
    poll_seconds: float = Field(default=1, gt=0)
    """Seconds between two polls: of an idle worker for work, and of a busy one for a cancellation."""
    lease_seconds: float = Field(default=60, gt=0)
    """Seconds without a heartbeat after which a worker loses its job."""
    concurrency: int = Field(default=1, ge=1, le=64)
    """Jobs that one worker process runs at the same time."""
    shard_points: int = Field(default=2000, ge=0)
    """Points of a shard: a larger evaluation is divided into shards, which several workers share. 0: never divided."""
    state_retention_days: float = Field(default=30, ge=0)
    """Days for which the states of a failed or cancelled job are kept for a retry."""
    max_crashes: int = Field(default=5, ge=1)
    """A job whose worker or training process has vanished this many times fails."""
    s3_bucket: str | None = Field(default=None, min_length=3, max_length=63)
    """S3 bucket for checkpoints, reports and uploads; by default they are in the data folder."""
    s3_endpoint_url: str | None = None
    """URL at which API and workers reach the S3 server; by default Amazon's."""
    s3_public_endpoint_url: str | None = None
    """URL at which clients reach the S3 server, if it is another one; requests are signed for it."""
    s3_region: str = "us-east-1"
    """Region that requests to the S3 server are signed for."""
    s3_access_key_id: SecretStr | None = None
    """Access key to the bucket; by default boto3 looks for credentials in its usual places."""
    s3_secret_access_key: SecretStr | None = None
    """The access key's secret."""
    storage_proxy: bool = False
    """Whether clients reach the S3 server only through the API, which then transfers all bytes."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port that serves metrics for Prometheus, without a key; none by default."""
    metrics_host: str = "127.0.0.1"
    """Address that port binds to; the default is reachable from this machine only."""
    webhook_http: bool = False
    """Whether webhooks may be called by plain http, too."""
    webhook_allow: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names and ranges (`ci.lan,10.1.0.0/16`) outside the public internet that webhooks may have, at any port."""
    inspection_seconds: int = Field(default=900, ge=1)
    """Seconds that the inspection of an uploaded file may take."""
    inspection_bytes: int = Field(default=16 * 1024**3, ge=1024)
    """Bytes that an uploaded file may unpack or decode to."""
    cache_bytes: int = Field(default=50 * 1024**3, ge=0)
    """Bytes of uploaded files that a worker's machine keeps for the next job; those in use come on top."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # there is no such file
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the environment names the folder
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take settings from the environment first, then from the files of the folder of secrets, if it is there."""
        folder = Path(os.environ.get("TEMPER_SECRETS_DIR", _SECRETS))
        files = (SecretsSettingsSource(settings_cls, folder),) if folder.is_dir() else ()
        return (init_settings, env_settings, *files)

    @field_validator("secrets_dir")
    @classmethod
    def _of_a_folder(cls, folder: Path) -> Path:
        if folder != _SECRETS and not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: make it, or leave this out")
        return folder

    @field_validator("database_url")
    @classmethod
    def _of_a_database(cls, url: str, info: ValidationInfo) -> str:
        try:
            make_url(url).get_dialect().import_dbapi()
        except (ArgumentError, ImportError) as error:
            raise ValueError(
                f"not a database that can be used here: {error}; write sqlite:////PATH/temper.db"
            ) from None
        if make_url(url).get_backend_name() == "sqlite" and make_url(url).database in (None, "", ":memory:"):
            raise ValueError("API and worker share the database, so it must be a file: write sqlite:////PATH/temper.db")
        return _with_password(url, info, "database_password")

    @field_validator("broker_url")
    @classmethod
    def _of_a_broker(cls, url: str, info: ValidationInfo) -> str:
        if url and urlsplit(url).scheme not in ("redis", "rediss"):
            raise ValueError("not a Redis or Valkey: write redis://HOST:6379/0, or leave it empty")
        return _with_password(url, info, "broker_password")

    @field_validator("first_api_key")
    @classmethod
    def _of_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch(r"tmp_[0-9A-Za-z]{8}_[0-9A-Za-z]{32}", key.get_secret_value()):
            raise ValueError("not an API key: write tmp_, 8 letters or digits, _, and 32 more; or leave it out")
        return key

    @field_validator("s3_endpoint_url", "s3_public_endpoint_url")
    @classmethod
    def _of_a_server(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/?#@\s]+/?", url):
            raise ValueError("write http:// or https://, a host and perhaps a port, and no path")
        return url and url.rstrip("/")

    @field_validator("s3_secret_access_key")
    @classmethod
    def _with_its_key(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (secret is None) != (info.data.get("s3_access_key_id") is None):
            raise ValueError("set TEMPER_S3_ACCESS_KEY_ID and TEMPER_S3_SECRET_ACCESS_KEY both, or neither")
        return secret

    @field_validator("webhook_allow", "trusted_proxies", mode="before")
    @classmethod
    def _separated(cls, entries: Any) -> Any:
        if isinstance(entries, str):
            return tuple(entry.strip() for entry in entries.split(",") if entry.strip())
        return entries

    @field_validator("webhook_allow")
    @classmethod
    def _names_or_ranges(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            try:
                ip_network(entry)
            except ValueError as error:
                if "/" in entry or not _HOST.fullmatch(entry):
                    raise ValueError(f"{entry!r}: {error}; write host names and ranges as ci.lan,10.1.0.0/16") from None
        return entries

    @field_validator("trusted_proxies")
    @classmethod
    def _ranges(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            try:
                ip_network(entry)
            except ValueError as error:
                raise ValueError(f"{entry!r}: {error}; write addresses and ranges as 127.0.0.1,10.1.0.0/16") from None
        return entries

    @property
    def heartbeat_seconds(self) -> float:
        """Seconds between two renewals of a lease. A worker gives a job up when two thirds of its lease have passed
        without one, so there are several tries before that."""
        return self.lease_seconds / HEARTBEATS_PER_LEASE

    @property
    def objects_dir(self) -> Path:
        """Stored checkpoints and reports."""
        return self.data_dir / "objects"

    @property
    def work_dir(self) -> Path:
        """What running jobs write; emptied when they end."""
        return self.data_dir / "work"

    @property
    def spool_dir(self) -> Path:
        """Parts of uploads that the API is receiving."""
        return self.data_dir / "spool"

    @property
    def kept_dir(self) -> Path:
        """Files of runs that could not be stored in the object store."""
        return self.data_dir / "kept"

    @property
    def cache_dir(self) -> Path:
        """Uploaded files on this machine, by their hash."""
        return self.data_dir / "cache"

    @property
    def models_dir(self) -> Path:
        """Local base models, one .safetensors file each."""
        return self.data_dir / "models"

    @property
    def datasets_dir(self) -> Path:
        """Local data sets, one ImageFolder folder or archive each."""
        return self.data_dir / "datasets"

    def make_folders(self) -> None:
        """Make the folders above where they are missing, and close the data folder to other users of the machine."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = self.data_dir.stat().st_mode
        # A folder such as /tmp belongs to all users; one of another user can only be changed by them.
        if mode & 0o077 and not mode & stat.S_ISVTX:
            with suppress(PermissionError):
                self.data_dir.chmod(0o700)
        folders = (self.objects_dir, self.work_dir, self.spool_dir, self.cache_dir, self.models_dir, self.datasets_dir)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def read(cls) -> Self:
        """Read the environment, and make nothing; end the program with a plain sentence where that fails."""
        try:
            return cls()
        except ValidationError as error:
            # An error in a default that depends on another setting is not the cause.
            sys.exit("\n".join(_sentence(each) for each in error.errors() if each["type"] != _FOLLOWS))
        except OSError as error:
            sys.exit(f"TEMPER_SECRETS_DIR: cannot read {error.filename}: {error.strerror}")

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment and make the folders; end the program with a plain sentence where that fails."""
        settings = cls.read()
        try:
            settings.make_folders()
        except OSError as error:
            sys.exit(f"TEMPER_DATA_DIR: cannot make {error.filename}: {error.strerror}")
        return settings


def _with_password(url: str, info: ValidationInfo, name: str) -> str:
    """Put a password that stands in a setting of its own into a URL. Raises ValueError."""
    password: SecretStr | None = info.data.get(name)
    if password is None:
        return url
    variable = f"TEMPER_{name.upper()}"
    if not url or (parsed := make_url(url)).host is None:
        raise ValueError(f"names no server that would take {variable}: leave that out, or write the server's address")
    if parsed.password is not None:
        raise ValueError(f"contains a password, and {variable} is set as well: leave one of them out")
    whole = parsed.set(username=parsed.username or "", password=password.get_secret_value())
    return whole.render_as_string(hide_password=False)


def _sentence(details: ErrorDetails) -> str:
    name = "_".join(map(str, details["loc"])).upper()
    return f"TEMPER_{name}: {details['msg'].removeprefix('Value error, ')}"
