"""Requests of others while one project does its worst to an API process: a store that has hung, slow name servers,
streams, long polls, and connections whose heads never end.

`python -m benchmarks.tenants` takes about three minutes, `--quick` one. One API process on SQLite runs with the limits
that users get, and is started anew for each case. Eight other projects send mixed traffic at twenty requests a second;
a request is late from the moment it was due. The aim is a p99 under 250 ms in each case. `--only CASE` measures one
and prints it. Results go to `benchmarks/results/tenants.json` and `.md`.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from app import main as api
from app.http.connections import allow_many_files
from app.jobs import lifecycle
from app.platform.database import Database, open_database
from app.platform.settings import Settings
from app.schemas.job_request import parse_request
from app.webhooks import url_policy
from benchmarks.service import add_projects, in_ms, mixed_traffic
from tests.support.guard import guard_process
from tests.support.instance import DIGITS
from tests.support.servers import free_port
from tests.support.silent import silent_server

RESULTS = Path(__file__).parent / "results"
AIM_MS = 250
RATE = 20
"""Requests of others per second."""
OTHERS = 8
SECONDS, QUICK_SECONDS = 20, 4
NAME_SECONDS = 30.0
"""Time that the name server takes."""
WARM_UP_SECONDS = 2
PAUSE_SECONDS = 5.0
"""Pause before the project that does its worst asks again, as Retry-After says: more would be a flood of requests,
which is for TEMPER_RATE_LIMIT."""
ATTACKERS = {"nobody": 0, "store": 64, "names": 64, "streams": 200, "polls": 200, "heads": 2000}
"""What a project does its worst with, and how many connections at once."""
WORDS = {
    "nobody": "nothing else happens",
    "store": "the S3 server has hung: one project reads reports",
    "names": "name servers take half a minute: one project makes webhooks",
    "streams": "one project follows events",
    "polls": "one project waits for a job",
    "heads": "heads of requests never end",
}
_FORK = multiprocessing.get_context("fork")
"""No thread of this process, and no connection to the database, is there when one of the others begins."""


def serve(environment: dict[str, str], log: Path) -> None:
    """Serve the API with a resolver that is slow for hosts of `.slow.test`."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resolve = url_policy.resolve

    def slow(host: str, port: int) -> Any:
        if host.endswith(".slow.test"):
            time.sleep(NAME_SECONDS)
        return resolve(host, port)

    url_policy.resolve = slow
    os.environ |= environment
    api.serve()


@contextmanager
def serving(settings: Settings, store: str) -> Iterator[str]:
    """Run an API process, and give its address."""
    port = free_port()
    environment = {
        "TEMPER_DATA_DIR": str(settings.data_dir),
        "TEMPER_PORT": str(port),
        "TEMPER_S3_BUCKET": "temper",
        "TEMPER_S3_ENDPOINT_URL": store,
        "TEMPER_S3_ACCESS_KEY_ID": "x",
        "TEMPER_S3_SECRET_ACCESS_KEY": "x",
    }
    process = _FORK.Process(target=serve, args=(environment, settings.data_dir / "api.log"))
    process.start()
    guard_process(process.pid)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while not _is_ready(url):
            assert process.is_alive(), "the API has ended"
            assert time.monotonic() < deadline, "the API is not ready"
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.join()


def _is_ready(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/readyz").status_code == HTTPStatus.OK
    return False


@contextmanager
def attacking(case: str, url: str, key: str, job_id: str, told: Path) -> Iterator[None]:
    """Do the worst in a process of its own, from when all its connections are there to the end of the block; the
    statuses of the answers are in `told`."""
    if not ATTACKERS[case]:
        told.write_text("{}")
        yield
        return
    process = _FORK.Process(target=_attack, args=(case, url, key, job_id, told))
    process.start()
    guard_process(process.pid)
    try:
        deadline = time.monotonic() + 60
        while not told.exists():
            assert process.is_alive(), "the attacker has ended"
            assert time.monotonic() < deadline, "the connections are not there"
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.join()


def _attack(case: str, url: str, key: str, job_id: str, told: Path) -> None:
    allow_many_files()
    asyncio.run(_Attack(case, url, key, job_id, told).run())


class _Attack:
    def __init__(self, case: str, url: str, key: str, job_id: str, told: Path) -> None:
        self._case = case
        self._place = urlsplit(url)
        self._head = f"Host: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        self._job = f"/jobs/{job_id}"
        self._told = told
        self._begun: set[int] = set()
        self._statuses: Counter[str] = Counter()

    async def run(self) -> None:
        """Keep so many connections open, and begin each anew when it ends."""
        acts: dict[str, Callable[[int], Awaitable[str]]] = {
            "store": lambda _: self._ask(f"GET {self._job}/report HTTP/1.1\r\n{self._head}\r\n"),
            "names": self._name,
            "streams": lambda _: self._ask(
                f"GET {self._job}/events HTTP/1.1\r\n{self._head}Accept: text/event-stream\r\n\r\n", to_the_end=True
            ),
            "polls": lambda _: self._ask(f"GET {self._job}?wait=60 HTTP/1.1\r\n{self._head}\r\n"),
            "heads": lambda _: self._ask("GET /livez HTTP/1.1\r\nHost:"),
        }
        act = acts[self._case]
        count = ATTACKERS[self._case]
        await asyncio.gather(self._tell(count), *(self._repeat(act, number) for number in range(count)))

    async def _tell(self, count: int) -> None:
        while True:
            await asyncio.sleep(0.2)
            if len(self._begun) == count:
                written = self._told.with_suffix(".new")
                written.write_text(json.dumps(dict(sorted(self._statuses.items()))))
                written.replace(self._told)

    async def _repeat(self, act: Callable[[int], Awaitable[str]], number: int) -> None:
        await asyncio.sleep(PAUSE_SECONDS * number / ATTACKERS[self._case])
        while True:
            try:
                self._begun.add(number)
                status = await act(number)
            except OSError:
                status = "cut off"
            self._statuses[status or "cut off"] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _name(self, number: int) -> str:
        body = json.dumps({"url": f"https://{number}.slow.test/"})
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return await self._ask(f"POST /webhooks HTTP/1.1\r\n{self._head}{fields}\r\n{body}")

    async def _ask(self, request: str, *, to_the_end: bool = False) -> str:
        reader, writer = await asyncio.open_connection(self._place.hostname, self._place.port)
        try:
            writer.write(request.encode())
            await writer.drain()
            head = (await reader.readline()).decode().split()
            if to_the_end:
                await reader.read()
            return head[1] if head else ""
        finally:
            writer.close()


def measure(case: str, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Measure the others' requests while one project does its worst."""
    settings = Settings(data_dir=folder)
    settings.make_folders()
    database = open_database(settings.database_url)
    (attacker, its_key), *others = add_projects(database, 1 + OTHERS)
    job_id = _job_with_report(database, attacker)
    database.close()
    keys, told = [key for _, key in others], folder / "answers.json"
    with silent_server() as store, serving(settings, store) as url:
        mixed_traffic(url, keys, rate=RATE, seconds=WARM_UP_SECONDS)
        with attacking(case, url, its_key, job_id, told), _probing(url) as probes:
            traffic = mixed_traffic(url, keys, rate=RATE, seconds=seconds)
        answers = json.loads(told.read_text())
    is_met = traffic["p99_ms"] < AIM_MS and not traffic["unanswered"] and not traffic["server_errors"]
    return {
        "connections": ATTACKERS[case],
        "answers_to_it": answers,
        "others": traffic,
        "readyz": {**in_ms(probes), "worst_ms": round(1000 * max(probes), 1)},
        "is_met": is_met,
    }


def _job_with_report(database: Database, project_id: str) -> str:
    with database.writing() as session:
        job = lifecycle.create(session, project_id, parse_request(DIGITS)).job
        job.report_key = f"jobs/{job.id}/report.json"
        return job.id


@contextmanager
def _probing(url: str) -> Iterator[list[float]]:
    """Time /readyz now and then while the block runs."""
    took: list[float] = []
    stopped = threading.Event()

    def probe() -> None:
        with httpx2.Client(base_url=url, timeout=30) as client:
            while not stopped.is_set():
                began = time.perf_counter()
                # One that is not answered counts with the time it has taken.
                with suppress(httpx2.TransportError):
                    client.get("/readyz")
                took.append(time.perf_counter() - began)
                stopped.wait(0.2)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        stopped.set()
        thread.join()


def page_of(result: dict[str, Any]) -> str:
    """Write the results for people."""
    rows = [
        f"| {WORDS[case]} | {each['connections'] or ''} | {each['others']['p50_ms']} | {each['others']['p99_ms']} | "
        f"{each['readyz']['worst_ms']} | {each['others']['server_errors'] + each['others']['unanswered']} | "
        f"{', '.join(f'{count} x {status}' for status, count in each['answers_to_it'].items())} | "
        f"{'yes' if each['is_met'] else 'no'} |"
        for case, each in result["cases"].items()
    ]
    return f"""# Requests of others while one project does its worst

`python -m benchmarks.tenants{" --quick" if result["quick"] else ""}`: one API process on SQLite, on the machine of \
its callers ({result["cores"]} cores, load {result["load"]["begin"]} at the beginning and {result["load"]["end"]} at \
the end). {OTHERS} other projects send {RATE} requests a second together for {result["seconds"]} s. Times are in \
milliseconds, from when a request of theirs was due; "not answered" counts 5xx and no answer. The aim is a p99 under \
{AIM_MS} ms.

| case | connections | p50 | p99 | slowest /readyz | not answered | answers to that project | aim met |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, to show that it works")
    parser.add_argument("--only", choices=ATTACKERS, help="this case alone; it is printed and not written")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for tenants.json and tenants.md")
    options = parser.parse_args()
    seconds = QUICK_SECONDS if options.quick else SECONDS
    load = {"begin": round(os.getloadavg()[0], 1)}
    cases = {}
    for case in [options.only] if options.only else ATTACKERS:
        with tempfile.TemporaryDirectory() as folder:
            cases[case] = measure(case, Path(folder), seconds=seconds)
    load["end"] = round(os.getloadavg()[0], 1)
    result = {"quick": options.quick, "seconds": seconds, "cores": os.cpu_count(), "load": load, "cases": cases}
    if options.only:
        print(json.dumps(result, indent=1))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "tenants.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "tenants.md").write_text(page_of(result))
    print(page_of(result))


if __name__ == "__main__":
    main()
