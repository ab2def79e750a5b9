"""The service's own processes, which this file starts but does not import.

`temper serve` runs the API and one worker, which start and end together. `temper api`, `worker`, `migrate` and `doctor`
replace the process of the command.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import NoReturn, TextIO
from urllib.parse import urlsplit

from client.credentials import credentials_file, data_dir, point_credentials_at
from client.errors import CannotServe

Child = subprocess.Popen[bytes]

# How long the API may take to be ready, and how long both may take to end.
START_SECONDS = 60.0
STOP_SECONDS = 25.0
TICK_SECONDS = 0.1
# A worker that has crashed is replaced after a pause, which grows while each new one crashes soon after its start.
SHORTEST_PAUSE, LONGEST_PAUSE, YOUNG_SECONDS = 1.0, 10.0, 60.0

_PR_SET_PDEATHSIG = 1


def become(module: str, *arguments: str, extra: str = "api", **settings: object) -> NoReturn:
    """Replace this process by a module of the service, with these settings in the environment. Raises CannotServe."""
    _check_installed(extra)
    os.environ.update({f"TEMPER_{name.upper()}": str(value) for name, value in settings.items()})
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # no shell is needed


def serve_until_stopped(*, host: str, port: int, folder: Path | None) -> None:
    """Run the API and one worker until a signal says stop, or until the API ends. Raises CannotServe."""
    _check_installed("worker")
    folder = (folder or data_dir()).absolute()
    with _lock(folder):
        _check_port(host, port)
        _serve(host=host, port=port, folder=folder)


def _serve(*, host: str, port: int, folder: Path) -> None:
    credentials = credentials_file(folder)
    environment = os.environ | {
        "TEMPER_HOST": host,
        "TEMPER_PORT": str(port),
        "TEMPER_DATA_DIR": str(folder),
        "TEMPER_CREDENTIALS_FILE": str(credentials),
        "TEMPER_MIGRATE_AT_START": os.environ.get("TEMPER_MIGRATE_AT_START", "true"),
    }
    url = _url(host, port)
    stop = _stop_on_signals()
    with _children(environment) as start:
        api = start("app")
        if _is_ready(url, api, stop):
            point_credentials_at(url, credentials)
            _say(f"Temper is ready at {url}, data in {folder}. Ctrl-C stops it.")
            _keep_working(start, api, stop)
        if not stop.is_set():
            raise CannotServe(f"the API has ended with status {api.wait()}: its last lines above say why")
        _say("stopping")


def _is_ready(url: str, api: Child, stop: Event) -> bool:
    """Wait for the API to be ready; return whether it is."""
    # Neither httpx2, whose import takes longer than that of all else here, nor urllib's opener, which loads
    # certificates. It comes while the API starts.
    from http.client import HTTPConnection, HTTPException

    address = urlsplit(url)
    assert address.hostname
    deadline = time.monotonic() + START_SECONDS
    while api.poll() is None and not stop.wait(TICK_SECONDS):
        connection = HTTPConnection(address.hostname, address.port, timeout=1)
        with suppress(OSError, HTTPException), closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == HTTPStatus.OK:
                return True
        if time.monotonic() > deadline:
            raise CannotServe(f"the API is not ready after {START_SECONDS:.0f} seconds: its lines above say why")
    return False


def _keep_working(start: Callable[[str], Child], api: Child, stop: Event) -> None:
    """Run a worker while the API runs, and replace one that has crashed."""
    pause = SHORTEST_PAUSE
    while True:
        began = time.monotonic()
        worker = start("worker.polling")
        while worker.poll() is None:
            if stop.wait(TICK_SECONDS) or api.poll() is not None:
                return
        is_young = time.monotonic() - began < YOUNG_SECONDS
        _say(f"the worker has ended with status {worker.returncode}; a new one starts in {pause:.0f} s")
        if stop.wait(pause):
            return
        pause = min(2 * pause, LONGEST_PAUSE) if is_young else SHORTEST_PAUSE


@contextmanager
def _children(environment: Mapping[str, str]) -> Iterator[Callable[[str], Child]]:
    """Yield a function that starts a module as a process; stop these processes at the end."""
    children: list[Child] = []

    def start(module: str) -> Child:
        # A process group of its own: Ctrl-C reaches only this process, which then stops its children.
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_parent,
        )
        children.append(child)
        return child

    try:
        yield start
    finally:
        _end(children)


def _die_with_parent() -> None:
    """On Linux, receive SIGTERM when `temper serve` ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(children: Sequence[Child]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    try:
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _say("not stopped in time; killed")
    finally:
        for child in children:
            child.kill()
            child.wait()


def _stop_on_signals() -> Event:
    """Let the first signal request an orderly stop; a second Ctrl-C stops everything at once."""
    stop = Event()

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask)
    return stop


def _check_installed(extra: str) -> None:
    """Check that the packages of a process are installed; a worker needs those of the API, too."""
    for module, part in (("uvicorn", "api"), ("torch", "worker")):
        if part in ("api", extra) and find_spec(module) is None:
            raise CannotServe(f"{module} is not installed, which this command needs: pip install 'temper[{extra}]'")


def _lock(folder: Path) -> TextIO:
    """Lock the data folder until the returned file is closed or this process ends."""
    import fcntl  # not available on Windows, where the other commands work

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / "serve.lock").open("a")
    except OSError as error:
        raise CannotServe(f"cannot use the data folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise CannotServe(
            f"another `temper serve` runs in {folder}: stop that one, or choose another folder with --data-dir"
        ) from error
    return file


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        guess = "is Temper running already? If not, " if error.errno == errno.EADDRINUSE else ""
        raise CannotServe(
            f"cannot listen on {host} port {port} ({reason}): {guess}choose another with --host and --port"
        ) from error


def _url(host: str, port: int) -> str:
    """Return the URL of the API on this machine."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def _say(line: str) -> None:
    # As the processes that it runs log.
    if os.environ.get("TEMPER_LOG_FORMAT") == "json":
        line = json.dumps({"logger": "temper", "level": "info", "event": line})
    else:
        line = f"temper: {line}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
