"""Load on the service: a real Postgres, an API process, and callers, all on this machine.

`python -m benchmarks.service` sends mixed traffic at 200 requests a second for two minutes, times claims and pages of
the list with 10,000 jobs queued in 100 projects, and lets 200 event streams live through a rolling restart. `--quick`
takes a twentieth of each, to show that it works. Results go to `benchmarks/results/service.json` and `.md`; a request
is late from the moment it was due, not from when a busy caller got to it.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import insert

from app import jobs, reading
from app.database import Database
from app.keys import new_key
from app.schemas import SCOPES
from app.tables import Job, Project, new_id
from core.spec import parse
from tests.instance import DIGITS, calling
from tests.native import instance
from tests.servers import postgres

RESULTS = Path(__file__).parent / "results"
CALLERS = 32
MIX = ("post", "list", "list", "get", "get", "get", "get", "events", "metrics", "me")
"""What a caller asks, each as likely."""


def share(values: Sequence[float], part: float) -> float:
    """Find the value that so large a part of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def in_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Sum up times in milliseconds."""
    return {"p50_ms": round(1000 * share(seconds, 0.5), 1), "p99_ms": round(1000 * share(seconds, 0.99), 1)}


def timed(count: int, act: Callable[[], object]) -> list[float]:
    """Do something so many times, one after the other."""
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        act()
        took.append(time.perf_counter() - begun)
    return took


def add_projects(database: Database, count: int) -> list[tuple[str, str]]:
    """Make projects, and a key to each."""
    made = []
    with database.writing() as session:
        for number in range(count):
            project = Project(name=f"project {number}", quotas={"queued_jobs": 1_000_000})
            session.add(project)
            session.flush()
            made.append((project.id, new_key(session, project, scopes=SCOPES)[1]))
    return made


def fill(database: Database, projects: Sequence[tuple[str, str]], count: int) -> None:
    """Queue so many jobs, dealt out to the projects in turn."""
    with database.writing() as session:
        first = jobs.create(session, projects[0][0], parse(DIGITS)).job
        row = {column.key: getattr(first, column.key) for column in Job.__table__.columns}
        rows = [
            row | {"id": new_id("job"), "project_id": projects[place % len(projects)][0]} for place in range(1, count)
        ]
        session.execute(insert(Job), rows)


def claims_and_lists(database: Database, projects: Sequence[tuple[str, str]], repeats: int) -> dict[str, Any]:
    """Time claims, and pages of a project's list."""

    def claim() -> None:
        with database.writing() as session:
            assert jobs.claim(session, worker="w", lease_seconds=3600, patience=jobs.Patience())

    def page() -> None:
        with database.reading() as session:
            project_id = random.choice(projects)[0]
            part = reading.list_jobs(
                session, project_id, matching={"status": "queued"}, labels={}, after=None, limit=100, order="desc"
            )
            assert part.rows

    return {"claim": in_ms(timed(repeats, claim)), "list": in_ms(timed(repeats, page))}


def mixed_traffic(url: str, keys: Sequence[str], *, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a steady rate, and note when each was answered and how."""
    clients = [calling(url, key) for key in keys]
    opened = [client.__enter__() for client in clients]
    posted: list[list[str]] = [[] for _ in opened]
    statuses: Counter[int] = Counter()
    late: list[float] = []
    lock = threading.Lock()
    begun = time.perf_counter() + 0.5

    def ask(number: int) -> None:
        due = begun + number / rate
        time.sleep(max(due - time.perf_counter(), 0))
        who = random.randrange(len(opened))
        api, mine = opened[who], posted[who]
        kind = random.choice(MIX)
        try:
            if kind == "post" or not mine:
                answer = api.post("/jobs", json=DIGITS)
                if answer.status_code == 201:
                    mine.append(answer.json()["id"])
            elif kind in ("list", "me"):
                answer = api.get("/jobs" if kind == "list" else "/me")
            else:
                tail = "" if kind == "get" else f"/{kind}"
                answer = api.get(f"/jobs/{random.choice(mine)}{tail}")
            status = answer.status_code
        except httpx2.TransportError:
            status = 0
        with lock:
            statuses[status] += 1
            late.append(time.perf_counter() - due)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(ask, range(int(rate * seconds))))
    ended = time.perf_counter()
    for client in clients:
        client.__exit__(None, None, None)
    return {
        "asked_per_second": rate,
        "answered_per_second": round(len(late) / (ended - begun), 1),
        "requests": len(late),
        "server_errors": sum(count for status, count in statuses.items() if status >= 500),
        "unanswered": statuses[0],
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        **in_ms(late),
    }


def follow(url: str, key: str, job_id: str, stopped: threading.Event, seen: list[int], ready: threading.Event) -> None:
    """Read a job's event stream, and resume it wherever it breaks, until the job has ended."""
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
    while not stopped.is_set():
        resume = {"Last-Event-ID": str(seen[-1])} if seen else {}
        try:
            with (
                httpx2.Client(base_url=url, timeout=30) as api,
                api.stream("GET", f"/jobs/{job_id}/events", headers=headers | resume) as stream,
            ):
                if stream.status_code == 204:
                    return
                for line in stream.iter_lines():
                    if line.startswith("id:"):
                        seen.append(int(line.removeprefix("id:")))
                        ready.set()
        except httpx2.TransportError:
            pass
        time.sleep(0.05)


def rolling_restart(server: Any, process: Any, key: str, *, streams: int) -> dict[str, Any]:
    """Open streams, restart the API beneath them, end their jobs, and see what each has heard."""
    with server_client(server.url, key) as api:
        ids = [api.post("/jobs", json=DIGITS).json()["id"] for _ in range(streams)]
    stopped, heard = threading.Event(), [[] for _ in ids]  # type: ignore[var-annotated]
    ready = [threading.Event() for _ in ids]
    threads = [
        threading.Thread(target=follow, args=(server.url, key, job_id, stopped, seen, begun))
        for job_id, seen, begun in zip(ids, heard, ready, strict=True)
    ]
    for thread in threads:
        thread.start()
    for begun in ready:
        assert begun.wait(60), "a stream has said nothing"
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    exit_seconds = time.perf_counter() - begin
    server.start_api()
    with server_client(server.url, key) as api:
        for job_id in ids:
            assert api.post(f"/jobs/{job_id}/cancel").status_code == 202
        expected = {
            job_id: [event["seq"] for event in api.get(f"/jobs/{job_id}/events").json()["data"]] for job_id in ids
        }
    deadline = time.monotonic() + 60
    while any(seen != expected[job_id] for job_id, seen in zip(ids, heard, strict=True)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    stopped.set()
    for thread in threads:
        thread.join(40)
    missed = sum(len(set(expected[job_id]) - set(seen)) for job_id, seen in zip(ids, heard, strict=True))
    twice = sum(len(seen) - len(set(seen)) for seen in heard)
    return {"streams": streams, "events": sum(map(len, expected.values())), "missed": missed, "twice": twice,
            "exit_seconds": round(exit_seconds, 2)}  # fmt: skip


def server_client(url: str, key: str) -> Any:
    """Call with patience: a restarted API may be busy with its streams."""
    return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def page_of(result: dict[str, Any]) -> str:
    """Write the results for people."""
    mixed, queued, restart = result["mixed"], result["queued"], result["restart"]
    return f"""# The service under load

`python -m benchmarks.service{" --quick" if result["quick"] else ""}`, one API process and Postgres on the
machine of its callers ({result["cores"]} cores, load {result["load"]} at the beginning).

| what | figure |
|---|---|
| mixed traffic | {mixed["requests"]} requests at {mixed["asked_per_second"]:g} a second |
| answered | {mixed["answered_per_second"]} a second; {mixed["server_errors"]} with 5xx, \
{mixed["unanswered"]} not at all |
| from when it was due | p50 {mixed["p50_ms"]} ms, p99 {mixed["p99_ms"]} ms |
| claim, {queued["jobs"]} queued in {queued["projects"]} projects | p50 {queued["claim"]["p50_ms"]} ms, \
p99 {queued["claim"]["p99_ms"]} ms |
| page of the list | p50 {queued["list"]["p50_ms"]} ms, p99 {queued["list"]["p99_ms"]} ms |
| streams through a restart | {restart["streams"]}; of {restart["events"]} events {restart["missed"]} missed, \
{restart["twice"]} twice; exit after {restart["exit_seconds"]} s |
"""


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure all of it."""
    part = 20 if quick else 1
    load = round(os.getloadavg()[0], 1)
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        options = {"database_url": server.create_database("service"), "migrate_at_start": True}
        with instance(Path(folder), rate_limit=1_000_000, max_streams=400, **options) as temper:
            process = temper.start_api()
            database = Database(options["database_url"])
            projects = add_projects(database, 100)
            keys = [key for _, key in projects[:8]]
            mixed = mixed_traffic(temper.url, keys, rate=200, seconds=120 / part)
            restart = rolling_restart(temper, process, keys[0], streams=200 // part)
            jobs_queued = 10_000
            fill(database, projects, jobs_queued)
            queued = claims_and_lists(database, projects, repeats=1000 // part)
            database.close()
    queued |= {"jobs": jobs_queued, "projects": len(projects)}
    return {"quick": quick, "cores": os.cpu_count(), "load": load, "mixed": mixed, "queued": queued, "restart": restart}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything, to show that it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for service.json and service.md")
    options = parser.parse_args()
    result = measure(quick=options.quick)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "service.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "service.md").write_text(page_of(result))
    print(page_of(result))


if __name__ == "__main__":
    main()
