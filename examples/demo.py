"""All of Temper on one small job: `make demo`, or `python -m examples.demo`.

Starts the service in a folder and on a port of its own, posts examples/digits.json, watches it, downloads the
checkpoint, loads it, prints the table of the report, and stops the service. Exits with 0 only if E-AT has kept its
promise: at least 25 points more union robustness for at most 2 points of accuracy. Only the checkpoint is left behind.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client import Temper, TemperError
from client.credentials import Credentials, read_credentials
from client.display.jobs import job_card
from client.display.live import watch
from client.display.reports import report_card
from client.display.screen import Screen
from core.schema.report import Reports

SPEC = Path(__file__).parent / "digits.json"
CHECKPOINT = Path("runs/demo/digits-e-at.safetensors")
LOAD = """
from pathlib import Path
from core.checkpoint import load
model, header = load(Path("{path}"))
print(type(model).__name__, "by", header.spec.method.name, "with seed", header.seed)
"""
MIN_UNION_GAIN, MAX_CLEAN_LOSS = 0.25, 0.02

console = Screen(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> int:
    """Run the demo and return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="temper-demo-") as folder,
        _service(Path(folder)) as credentials,
        Temper(credentials.url, credentials.api_key) as temper,
    ):
        reports = _robustify(temper)
    console.print(f"\nThe service has stopped. {time.monotonic() - began:.0f} seconds in all.")
    return 0 if reports and _is_as_promised(reports) else 1


def _robustify(temper: Temper) -> Reports | None:
    """Post the job, see it through, fetch what it made."""
    _step(f"temper submit examples/{SPEC.name} --watch")
    posted = temper.jobs.submit(json.loads(SPEC.read_text()))
    watch(temper, posted.id, console)
    job = temper.jobs.get(posted.id)
    if job.status != "succeeded":
        console.print(job_card(job))
        return None
    _step(f"temper download {job.id} -o {CHECKPOINT}")
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    temper.checkpoints.download(job.id, CHECKPOINT)
    console.print(f"{CHECKPOINT}, {CHECKPOINT.stat().st_size:,} bytes, sha256 checked")
    load = LOAD.format(path=CHECKPOINT).strip()
    _step(f"python\n{load}")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", load], check=True)
    _step(f"temper report {job.id}")
    reports = temper.jobs.report(job.id)
    console.print(report_card(reports))
    return reports


@contextmanager
def _service(folder: Path) -> Iterator[Credentials]:
    """Run `temper serve` as a stranger to any other Temper on this machine, and stop it whatever happens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPER_")}
    command = [sys.executable, "-m", "client", "serve", "--port", port, "--data-dir", str(folder)]
    _step(f"temper serve --port {port}")
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, process_group=0)
    try:
        while "Temper is ready" not in log.read_text():
            if process.poll() is not None:
                sys.exit(f"the service did not start:\n{log.read_text()}")
            time.sleep(0.1)
        credentials = read_credentials(folder / "credentials.json")
        assert credentials, "the service writes them before it is ready"
        yield credentials
    finally:
        process.terminate()
        process.wait()


def _is_as_promised(reports: Reports) -> bool:
    if reports.before is None or reports.after is None:
        return False
    gain = reports.after.union.value - reports.before.union.value
    loss = reports.before.clean.value - reports.after.clean.value
    kept = gain >= MIN_UNION_GAIN and loss <= MAX_CLEAN_LOSS
    console.print(
        f"union {100 * gain:+.1f} points, clean {-100 * loss:+.1f} points: "
        f"{'as promised' if kept else 'NOT as promised'} (union +25 at least, clean -2 at most)",
        style="green" if kept else "red",
    )
    return kept


def _step(what: str) -> None:
    console.print(f"\n[bold]$ {what}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TemperError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
