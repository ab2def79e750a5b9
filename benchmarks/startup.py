"""Time from start to end, or to readiness, of whole processes: `temper --help`, `temper list`, `temper serve`.

    python -m benchmarks.startup [--checkout FOLDER] [--repeat 7]

It starts the `client` package of a checkout as a user does, so that two versions can be compared on one machine in one
session: `--checkout` names the folder of the other one. Every figure is the median of several processes, after one that
fills the caches. Prints JSON; seconds.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
READY_SECONDS = 120.0


def main() -> None:
    """Measure one checkout and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the folder of the version to measure")
    parser.add_argument("--repeat", type=int, default=7, help="processes per figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.checkout.resolve(), Path(folder), repeat=options.repeat)
    sys.stdout.write(json.dumps({"repeat": options.repeat, "cores": os.cpu_count(), "seconds": found}, indent=1) + "\n")


def measure(checkout: Path, folder: Path, *, repeat: int) -> dict[str, float]:
    """Give the median seconds of each command."""
    serves = []
    for number in range(repeat + 1):
        with _served(checkout, folder / str(number)) as (seconds, _):
            serves.append(seconds)
    with _served(checkout, folder / "live") as (_, environment):
        return {
            "temper --help": _median(lambda: _run(checkout, environment, "--help"), repeat),
            "temper list": _median(lambda: _run(checkout, environment, "list"), repeat),
            "temper serve until ready": round(statistics.median(serves[1:]), 3),
        }


@contextmanager
def _served(checkout: Path, folder: Path) -> Iterator[tuple[float, dict[str, str]]]:
    """Run `temper serve` in a new folder; give the seconds until /readyz answers, and the environment of callers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TEMPER_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "client", "serve", "--port", str(port), "--data-dir", str(folder)]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() - began > READY_SECONDS:
                sys.exit("`temper serve` is not ready: run it by hand to see why")
            time.sleep(0.01)
        seconds = time.monotonic() - began
        credentials = folder / "credentials.json"
        while not credentials.exists():
            time.sleep(0.05)
        yield seconds, environment | {"TEMPER_URL": f"http://127.0.0.1:{port}"} | _key_of(credentials)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _key_of(credentials: Path) -> dict[str, str]:
    return {"TEMPER_API_KEY": json.loads(credentials.read_text())["api_key"]}


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _run(checkout: Path, environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "client", *arguments]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)


def _median(run: Callable[[], None], repeat: int) -> float:
    times = []
    for _ in range(repeat + 1):
        began = time.monotonic()
        run()
        times.append(time.monotonic() - began)
    return round(statistics.median(times[1:]), 3)


if __name__ == "__main__":
    main()
