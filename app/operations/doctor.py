"""`python -m app.operations.doctor`: check everything that an instance depends on, and say what to do about each fault.

It exits with 1 where something fails. With --json it says the same to programs.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import httpx2
from sqlalchemy import make_url
from sqlalchemy.exc import DatabaseError

from app.platform.broker import AWAY, Line
from app.platform.database import Database
from app.platform.ids import new_id
from app.platform.queue import HEARD
from app.platform.settings import Settings
from app.storage import ObjectStore, StorageUnavailable, open_store
from core.schema.suggestions import find_close

_MEMORIES = [f"{part}_MEMORY" for part in ("DB", "QUEUE", "STORAGE", "API", "WORKER", "WORKER_CPU")]
_OF_OTHERS = ("URL", "API_KEY", "VERSION", "PUBLISH", "GPU", "WORKER_SHM", *_MEMORIES)
"""Variables, without TEMPER_, that are no settings of a process: the client reads the first two, compose the others."""

Level = Literal["ok", "warn", "fail"]

_GIGABYTE = 10**9
_LITTLE, _TOO_LITTLE = 20 * _GIGABYTE, 2 * _GIGABYTE
_GUESSED_FIRST = frozenset(
    {"", "admin", "changeme", "changeit", "example", "password", "postgres", "secret", "temper", "test"}
)
"""Passwords that attackers try first."""
_LOOK_FOR_GPUS = """
import json, torch
print(json.dumps([torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]))
"""
_OPEN = """
import json, sys
opened = []
for path in sys.argv[1:]:
    try:
        open(path).close()
        opened.append(path)
    except OSError:
        pass
print(json.dumps(opened))
"""
"""Prints those of its arguments that it can open."""
_REMEDIES = {
    "several processes": "let users make namespaces (user.max_user_namespaces), or keep workers from the network",
    "files": "use a kernel with Landlock, enabled by lsm=landlock,... and allowed by the container's seccomp profile",
    "signals": "use Linux 6.12 or later, or run each worker as a user of its own",
    "servers": "let the container's seccomp profile allow seccomp(2), or keep the worker from the network otherwise",
}
"""The remedy for each gap, by a word in it."""


@dataclass(frozen=True)
class Finding:
    """The result of a check of one part of the installation."""

    part: str
    level: Level
    message: str
    remedy: str = ""
    """What to do; empty if nothing is wrong."""


Check: TypeAlias = Callable[[Settings], Iterator[Finding]]


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Check that every variable of the environment that begins with TEMPER_ is one that something reads."""
    del settings
    known = [f"TEMPER_{name.upper()}" for name in (*Settings.model_fields, *_OF_OTHERS)]
    unknown = [name for name in sorted(os.environ) if name.startswith("TEMPER_") and name not in known]
    for name in unknown:
        close = find_close(name, known)
        remedy = f"did you mean {close}? If not, remove it" if close else "remove it; the settings are in the reference"
        yield Finding("settings", "warn", f"{name} is not a setting, and changes nothing", remedy)
    if not unknown:
        yield Finding("settings", "ok", "every TEMPER_ variable is known")


def check_running(settings: Settings) -> Iterator[Finding]:
    """Tell whether the API of this instance answers."""
    url = f"http://{_here(settings.host)}:{settings.port}"
    remedy = "start it with `temper serve`, or on a server with `temper api`"
    try:
        # A port may be that of any other server.
        answer = httpx2.get(f"{url}/version", timeout=5, trust_env=False)
        is_temper = "api" in answer.json()
    except httpx2.TransportError as error:
        yield Finding("service", "warn", f"nothing is running at {url}: {error}", remedy)
        return
    except (ValueError, TypeError):
        is_temper = False
    if is_temper:
        yield Finding("service", "ok", f"the API answers at {url}")
    else:
        yield Finding("service", "warn", f"what answers at {url} is not Temper", f"set TEMPER_PORT; then {remedy}")


def _here(host: str) -> str:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{here}]" if ":" in here else here


def check_database(settings: Settings) -> Iterator[Finding]:
    """Check that the database answers, has this version's schema, and can be written."""
    url = make_url(settings.database_url)
    where = url.render_as_string()
    # To open an SQLite file that is not there would make it.
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        remedy = "start the service, which makes it, or run `temper migrate`"
        yield Finding("database", "fail", f"there is no database yet at {url.database}", remedy)
        return
    database = Database(settings.database_url)
    try:
        schema = database.schema()
        yield Finding("database", "ok", f"{where} answers")
        if schema.complaint:
            problem, _, remedy = schema.complaint.rpartition(": ")
            yield Finding("schema", "fail", problem, remedy)
            return
        database.try_to_write()
        yield Finding("schema", "ok", f"{schema.needed}, and it can be written")
    except DatabaseError as error:
        reason = " ".join(str(error.orig).split())
        yield Finding(
            "database", "fail", f"{where}: {reason}", "see that it runs and that TEMPER_DATABASE_URL is right"
        )
    finally:
        database.close()


def check_queue(settings: Settings) -> Iterator[Finding]:
    """Check that the broker delivers a message, and that workers listen."""
    if not settings.broker_url:
        yield Finding("queue", "ok", "none: workers poll")
        return
    where = make_url(settings.broker_url).render_as_string()
    line = Line(settings.broker_url)
    try:
        line.echo()
        unheard = {resource: line.waiting(resource) for resource in HEARD}
    except AWAY as error:
        remedy = "see that it runs and that TEMPER_BROKER_URL is right; until then workers find jobs by polling"
        yield Finding("queue", "fail", f"{where}: {error}", remedy)
    else:
        many = [f"{count} for {resource}" for resource, count in unheard.items() if count > 1]
        if many:
            message = f"{where} takes messages, but some wait unheard: {', '.join(many)}"
            yield Finding("queue", "warn", message, "see that a worker of that class runs; busy workers are no fault")
        else:
            yield Finding("queue", "ok", f"{where} takes and gives messages")
    finally:
        line.hang_up()


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Write, read, fetch as a client would, and delete."""
    where = f"bucket {settings.s3_bucket}" if settings.s3_bucket else str(settings.objects_dir)
    if not settings.s3_bucket and not settings.objects_dir.exists():
        remedy = "start the service, which makes it"
        yield Finding("storage", "warn", f"there is no folder {where} yet", remedy)
        return
    store = open_store(settings)
    key = f"doctor/{new_id('doc')}"
    content = os.urandom(1024)
    try:
        with NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            store.put(key, Path(file.name))
        arrived = b"".join(store.read(key))
        if hashlib.sha256(arrived).digest() != hashlib.sha256(content).digest():
            yield Finding("storage", "fail", f"{where} gives back something else than it was given", "look at its disk")
            return
        yield Finding("storage", "ok", f"{where} can be written and read")
        yield _fetch_as_a_client(store, key, content)
    except StorageUnavailable as error:
        remedy = "see that it runs, that the bucket is there, and that the TEMPER_S3_ variables are right"
        if not settings.s3_bucket:
            remedy = "let the service write to its data folder, and see that its disk has room"
        yield Finding("storage", "fail", f"{where}: {error}", remedy)
    finally:
        _forget(store, key)


def _fetch_as_a_client(store: ObjectStore, key: str, content: bytes) -> Finding:
    if store.presigner is None:
        return Finding("downloads", "ok", "clients fetch files through the API")
    request = store.presigner.download(key, file_name="doctor")
    where = "{0.scheme}://{0.netloc}".format(urlsplit(request.url))
    remedy = "clients must reach TEMPER_S3_PUBLIC_ENDPOINT_URL; or set TEMPER_STORAGE_PROXY=true"
    try:
        answer = httpx2.get(request.url, headers=dict(request.headers), timeout=10, trust_env=False)
    except httpx2.TransportError as error:
        return Finding("downloads", "fail", f"{where}, where clients are sent, cannot be reached: {error}", remedy)
    if answer.content != content:
        return Finding("downloads", "fail", f"{where} answers a signed address with {answer.status_code}", remedy)
    return Finding("downloads", "ok", f"clients fetch files from {where}")


def _forget(store: ObjectStore, key: str) -> None:
    try:
        store.delete(key)
    except StorageUnavailable:
        pass
    finally:
        store.close()


def check_gpu(settings: Settings) -> Iterator[Finding]:
    """Find the devices that a worker on this machine would use."""
    if importlib.util.find_spec("torch") is None:
        yield Finding("gpu", "ok", "torch is not installed: this machine can serve the API, not work")
        return
    # In another process, because this one must not load torch, and a broken driver may crash it.
    command = [sys.executable, "-c", _LOOK_FOR_GPUS]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        names = json.loads(found.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        words = str(getattr(error, "stderr", "") or error).strip().rpartition("\n")[2]
        yield Finding("gpu", "fail", f"torch cannot be used: {words}", "install it again: pip install 'temper[worker]'")
        return
    if names:
        yield Finding("gpu", "ok", f"{len(names)}: {', '.join(names)}")
    elif settings.resource_class == "cpu":
        yield Finding("gpu", "ok", "none, and none is needed: TEMPER_RESOURCE_CLASS is cpu")
    else:
        remedy = "look at nvidia-smi and the driver; where there is none, set TEMPER_RESOURCE_CLASS=cpu"
        yield Finding("gpu", "warn", "none: a worker here computes on the CPU", remedy)


def check_confinement(settings: Settings) -> Iterator[Finding]:
    """Check that runs and inspections, which read files of users, are kept from secrets, other files and servers."""
    if importlib.util.find_spec("torch") is None:
        return
    secrets = [path for path in _secret_files(settings) if path.is_file()]
    try:
        gaps = json.loads(_run("-m", "core.confinement", "--check"))
        command = ["-m", "core.confinement", sys.executable, "-I", "-c", _OPEN, *map(str, secrets)]
        opened = json.loads(_run(*command))
    except (subprocess.SubprocessError, ValueError) as error:
        words = str(getattr(error, "stderr", "") or error).strip().rpartition("\n")[2]
        yield Finding("runs", "fail", f"they cannot be confined: {words}", "report this with the version of the kernel")
        return
    if opened and not any("open all files" in gap for gap in gaps):
        remedy = "move it out of the folders of Python and the system, which runs may read"
        yield Finding("runs", "fail", f"a run can open {', '.join(opened)}", remedy)
    for gap in gaps:
        yield Finding("runs", "warn", gap, _REMEDIES[next(word for word in _REMEDIES if word in gap)])
    if not gaps and not opened:
        yield Finding("runs", "ok", "runs and inspections open no secret, and reach no server and no other process")


def _secret_files(settings: Settings) -> Iterator[Path]:
    if make_url(settings.database_url).get_backend_name() == "sqlite":
        yield Path(make_url(settings.database_url).database or "")
    if settings.credentials_file:
        yield settings.credentials_file
    if settings.secrets_dir.is_dir():
        yield from settings.secrets_dir.glob("temper_*")


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Check that the disk has room where runs write."""
    # The data folder may not be there yet: then it will be on the disk of the folder around it.
    folder = settings.data_dir.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    message = f"{free / _GIGABYTE:.1f} GB free in {settings.data_dir}"
    if free < _LITTLE:
        yield Finding(
            "disk", "fail" if free < _TOO_LITTLE else "warn", message, "make room: runs save their states there"
        )
    else:
        yield Finding("disk", "ok", message)


def check_secrets(settings: Settings) -> Iterator[Finding]:
    """Check that secrets are readable by their owner only, and hard to guess."""
    weak = [
        name
        for name, password in _passwords(settings)
        if password is not None and (password.lower() in _GUESSED_FIRST or len(password) < 12)
    ]
    if weak:
        message = f"easy to guess: the password in {' and in '.join(weak)}"
        yield Finding("secrets", "warn", message, "choose a long random one; ./deploy/bootstrap writes such")
    file = settings.credentials_file
    if file and file.exists() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("secrets", "fail", f"{file} can be read by others", f"chmod 600 {file}, and revoke the key in it")
    elif not weak:
        yield Finding("secrets", "ok", "none is easy to guess")


def _passwords(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Name the passwords there are. One that reaches no further than this machine may be missing."""
    for name, url in (("TEMPER_DATABASE_URL", settings.database_url), ("TEMPER_BROKER_URL", settings.broker_url)):
        if url and (host := make_url(url).host):
            given = make_url(url).password
            here = host in ("localhost", "127.0.0.1", "::1")
            yield name, None if here and given is None else str(given or "")
    if settings.s3_secret_access_key:
        yield "TEMPER_S3_SECRET_ACCESS_KEY", settings.s3_secret_access_key.get_secret_value()


CHECKS: Sequence[Check] = (
    check_settings,
    check_running,
    check_database,
    check_queue,
    check_storage,
    check_gpu,
    check_confinement,
    check_disk,
    check_secrets,
)


def inspect(settings: Settings, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Run all checks."""
    for check in checks:
        yield from check(settings)


def main() -> None:
    """Check the instance that the environment describes, and make nothing."""
    as_json = "--json" in sys.argv[1:]
    findings = []
    for finding in inspect(Settings.read()):
        findings.append(finding)
        if not as_json:
            remedy = f"\n{'':15}{finding.remedy}" if finding.remedy else ""
            sys.stdout.write(f"{finding.level:4} {finding.part:9} {finding.message}{remedy}\n")
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    sys.exit(any(finding.level == "fail" for finding in findings))


if __name__ == "__main__":
    main()
