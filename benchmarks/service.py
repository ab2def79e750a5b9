"""Load on the service: a real Postgres and broker, API processes, and callers, all on this machine.

`python -m benchmarks.service` sends mixed traffic at 200 requests a second for two minutes, lets 200 event streams live
through a rolling restart, times claims and pages of the list with 10,000 jobs queued in 100 projects, and compares a
run of the command line with the same run as a job. In all that takes under eight minutes. `--only PART` takes one of
them, and `--quick` a twentieth of each, to show that it works. Results of all parts go to
`benchmarks/results/service.json` and `.md`.

A request is late from the moment it was due, not from when a busy caller got to it. What else the machine has to do
would show in all of this, so the processor time of each party is there, too, and how much of it others took.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from sqlalchemy import insert

from app.jobs import claims, lifecycle, queries
from app.platform.database import Database
from app.platform.ids import new_id
from app.projects.keys import new_key
from app.schemas import SCOPES
from app.schemas.job_request import parse_request
from app.tables import Job, Project
from tests.support.instance import DIGITS
from tests.support.native import ROOT, Instance, instance
from tests.support.servers import postgres, valkey

RESULTS = Path(__file__).parent / "results"
PARTS = ("traffic", "overhead")
CORES = sorted(os.sched_getaffinity(0))[:2]
CALLERS = 32
WARM_UP_SECONDS = 5
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
        first = lifecycle.create(session, projects[0][0], parse_request(DIGITS)).job
        row = {column.key: getattr(first, column.key) for column in Job.__table__.columns}
        rows = [
            row | {"id": new_id("job"), "project_id": projects[place % len(projects)][0]} for place in range(1, count)
        ]
        session.execute(insert(Job), rows)


def claims_and_lists(database: Database, projects: Sequence[tuple[str, str]], repeats: int) -> dict[str, Any]:
    """Time claims, and pages of a project's list."""

    def claim() -> None:
        with database.writing() as session:
            assert claims.claim(session, worker="w", lease_seconds=3600, retry_policy=claims.RetryPolicy(max_crashes=5))

    def page() -> None:
        with database.reading() as session:
            project_id = random.choice(projects)[0]
            part = queries.list_jobs(
                session, project_id, matching={"status": "queued"}, labels={}, after=None, limit=100, order="desc"
            )
            assert part.rows

    return {"claim": in_ms(timed(repeats, claim)), "list": in_ms(timed(repeats, page))}


class Line(threading.local):
    """A connection to the API for each thread, and no more than that: callers share the machine with what they call."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=30)

    def ask(self, key: str, method: str, path: str, spec: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Send a request and read the answer; status 0 where none came."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            self._connection.request(method, path, json.dumps(spec) if spec else None, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException):
            self._connection.close()
            return 0, b""


def mixed_traffic(url: str, keys: Sequence[str], *, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a steady rate, and note when each was answered and how."""
    line = Line(url)
    posted: dict[str, list[str]] = {key: [] for key in keys}
    statuses: Counter[int] = Counter()
    late: list[float] = []
    lock = threading.Lock()
    begun = time.perf_counter() + 0.5

    def ask(number: int) -> None:
        due = begun + number / rate
        time.sleep(max(due - time.perf_counter(), 0))
        key, kind = random.choice(keys), random.choice(MIX)
        mine = posted[key]
        if kind == "post" or not mine:
            status, content = line.ask(key, "POST", "/jobs", DIGITS)
            if status == 201:
                mine.append(json.loads(content)["id"])
        elif kind in ("list", "me"):
            status, _ = line.ask(key, "GET", "/jobs" if kind == "list" else "/me")
        else:
            status, _ = line.ask(key, "GET", f"/jobs/{random.choice(mine)}" + ("" if kind == "get" else f"/{kind}"))
        with lock:
            statuses[status] += 1
            late.append(time.perf_counter() - due)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(ask, range(int(rate * seconds))))
    return {
        "asked_per_second": rate,
        "answered_per_second": round(len(late) / (time.perf_counter() - begun), 1),
        "requests": len(late),
        "server_errors": sum(count for status, count in statuses.items() if status >= 500),
        "unanswered": statuses[0],
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        **in_ms(late),
    }


def cpu_seconds(pid: int) -> float:
    """Add up the processor time of a process, of the children that it has waited for, and of those that it has."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return 0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(child)) for child in children)


def busy_seconds() -> float:
    """Read the processor time that the whole machine has spent on anything."""
    user, nice, system, _idle, _waiting, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def with_cpu(api: int, database: int, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do something, and note what processor time it took of whom, in cores."""

    def spent() -> dict[str, float]:
        parties = {"api": cpu_seconds(api), "database": cpu_seconds(database), "callers": time.process_time()}
        return {**parties, "others": busy_seconds() - sum(parties.values())}

    before, began = spent(), time.perf_counter()
    result = act()
    elapsed = time.perf_counter() - began
    return {**result, "cores": {who: round((took - before[who]) / elapsed, 2) for who, took in spent().items()}}


def follow(url: str, key: str, job_id: str, stopped: threading.Event, seen: list[int], ready: threading.Event) -> None:
    """Read a job's event stream, and resume it wherever it breaks, until the job has ended."""
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
    while not stopped.is_set():
        resume = {"Last-Event-ID": str(seen[-1])} if seen else {}
        connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
        try:
            connection.request("GET", f"/jobs/{job_id}/events", headers=headers | resume)
            for line in connection.getresponse():
                if line.startswith(b"event: end"):
                    return
                if line.startswith(b"id:"):
                    seen.append(int(line.removeprefix(b"id:")))
                    ready.set()
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        stopped.wait(0.5)


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
    """Call with retry_policy: a restarted API may be busy with its streams."""
    return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def under_traffic(part: int) -> dict[str, Any]:
    """Measure mixed traffic, a rolling restart, and claims among many jobs."""
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        options = {"database_url": server.create_database("service"), "migrate_at_start": True}
        several = {"api_workers": len(CORES), "rate_limit": 1_000_000}
        constants = {"app.http.places.STREAMS": 400, "app.http.places.STREAMS_SHARE": 400}
        with instance(Path(folder), constants=constants, forked=False, **several, **options) as temper:
            process = temper.start_api()
            database = Database(options["database_url"])
            projects = add_projects(database, 100)
            keys = [key for _, key in projects[:8]]
            mixed_traffic(temper.url, keys, rate=100, seconds=WARM_UP_SECONDS)
            mixed = with_cpu(
                process.pid, server.pid, lambda: mixed_traffic(temper.url, keys, rate=200, seconds=120 / part)
            )
            restart = rolling_restart(temper, process, keys[0], streams=200 // part)
            jobs_queued = 10_000
            fill(database, projects, jobs_queued)
            queued = claims_and_lists(database, projects, repeats=1000 // part)
            database.close()
    queued |= {"jobs": jobs_queued, "projects": len(projects)}
    return {"api_processes": len(CORES), "mixed": mixed, "queued": queued, "restart": restart}


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep what is started in the block, and all that it starts, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_of_library(spec: Path, output: Path) -> dict[str, float]:
    """Run a spec by `python -m core`."""
    command = [sys.executable, "-m", "core", "finetune", str(spec), "--json", "--output", str(output)]
    began, before = time.perf_counter(), os.times()
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    (finished,) = (event for event in map(json.loads, run.stdout.splitlines()) if event["type"] == "finished")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - began, "training": finished["seconds"], "cpu": cpu}


def run_as_job(temper: Instance, servers: Sequence[int], spec: dict[str, Any]) -> dict[str, float]:
    """Run a spec as a job of a service that waits for it. servers: the processes of its database and its broker."""
    api, worker = temper.processes
    parties = *servers, api.pid

    def own() -> float:
        # The time of children is that of the training process.
        times = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(cpu_seconds, parties)) + sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    with temper.client() as client:
        before, began = own(), time.perf_counter()
        job = client.post("/jobs", json=spec).json()
        while not job["is_terminal"]:
            # Below the timeout of the client.
            job = client.get(f"/jobs/{job['id']}", params={"wait": 20}).json()
        seconds, took = time.perf_counter() - began, own() - before
        assert job["status"] == "succeeded", job
        history = client.get(f"/jobs/{job['id']}/events", params={"limit": 1000}).json()["data"]
    (finished,) = (event["data"] for event in history if event["type"] == "finished")
    claimed, ended = map(datetime.fromisoformat, (job["started_at"], job["finished_at"]))
    return {
        "seconds": seconds,
        "claimed_seconds": (ended - claimed).total_seconds(),
        "training": finished["seconds"],
        "service_cpu": took,
    }


def overhead(part: int) -> dict[str, Any]:
    """Run the same spec by the command line and as a job, both at once, each with all that belongs to it on a core of
    its own; then with the cores exchanged, so that what one core has over the other cancels out."""
    spec = {**DIGITS, "epochs": max(1, 85 // part), "held_out": 0, "evaluation": {"protocol": "fast", "examples": 300}}
    pairs = []
    for ours, other in (CORES, CORES[::-1]):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            file = folder / "spec.json"
            file.write_text(json.dumps(spec))
            with on_core(ours):
                server, broker = stack.enter_context(postgres()), stack.enter_context(valkey())
                options = {"database_url": server.create_database("service"), "broker_url": broker.url}
                # The settings of a user, not of a test.
                clocks = {"poll_seconds": 1, "migrate_at_start": True}
                constants = {"app.jobs.watch.WATCH_SECONDS": 0.5}
                temper = stack.enter_context(
                    instance(folder, "-m", "worker.main", constants=constants, forked=False, **options, **clocks)
                )
                temper.start_api()
                temper.start_worker()
            heartbeat = folder / "data" / "worker.heartbeat"
            while not heartbeat.exists():
                time.sleep(0.1)
            pool = stack.enter_context(ThreadPoolExecutor(1))
            job = pool.submit(run_as_job, temper, (server.pid, broker.process.pid), spec)
            with on_core(other):
                library = run_of_library(file, folder / "run")
            pairs.append({"core": ours, "library": library, "service": job.result()})

    def added(what: str) -> float:
        """The mean share that the service adds, in percent."""
        ratios = [pair["service"][what] / pair["library"][what] for pair in pairs]
        return round(100 * (prod(ratios) ** (1 / len(ratios)) - 1), 2)

    shares = [pair["service"]["service_cpu"] / pair["library"]["seconds"] for pair in pairs]
    return {
        "pairs": pairs,
        "added_percent": {what: added(what) for what in ("seconds", "training")},
        "service_cpu_percent": round(100 * sum(shares) / len(shares), 2),
    }


def page_of(result: dict[str, Any]) -> str:
    """Write the results for people."""
    mixed, queued, restart, cost = (result[name] for name in ("mixed", "queued", "restart", "overhead"))
    cores = mixed["cores"]
    served = mixed["answered_per_second"] / (cores["api"] + cores["database"])
    seconds = [round(pair[who]["seconds"], 1) for pair in cost["pairs"] for who in ("library", "service")]
    return f"""# The service under load

`python -m benchmarks.service{" --quick" if result["quick"] else ""}`: {result["api_processes"]} API processes and \
Postgres on the machine of their callers ({result["cores"]} cores, load {result["load"]["begin"]} at the beginning and \
{result["load"]["end"]} at the end). While the traffic ran, others on the machine took {cores["others"]} cores.

| what | figure |
|---|---|
| mixed traffic | {mixed["requests"]} requests at {mixed["asked_per_second"]:g} a second |
| answered | {mixed["answered_per_second"]} a second; {mixed["server_errors"]} with 5xx, \
{mixed["unanswered"]} not at all |
| from when it was due | p50 {mixed["p50_ms"]} ms, p99 {mixed["p99_ms"]} ms |
| cores taken | API {cores["api"]}, Postgres {cores["database"]}, callers {cores["callers"]}: {served:.0f} requests \
for each second of processor time of API and Postgres |
| claim, {queued["jobs"]} queued in {queued["projects"]} projects | p50 {queued["claim"]["p50_ms"]} ms, \
p99 {queued["claim"]["p99_ms"]} ms |
| page of the list | p50 {queued["list"]["p50_ms"]} ms, p99 {queued["list"]["p99_ms"]} ms |
| streams through a restart | {restart["streams"]}; of {restart["events"]} events {restart["missed"]} missed, \
{restart["twice"]} twice; exit after {restart["exit_seconds"]} s |
| what the service adds to a run | {cost["added_percent"]["seconds"]} % from start to end, \
{cost["added_percent"]["training"]} % to the training; its own processes take {cost["service_cpu_percent"]} % \
of a core |

The last row is the mean over two pairs of the same spec by `python -m core` and as a job, each with all that belongs to
it on one core, both at once, the second time with the cores exchanged: {seconds[0]} s and {seconds[1]} s, then \
{seconds[2]} s and {seconds[3]} s.
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything, to show that it works")
    parser.add_argument("--only", choices=PARTS, help="this part alone; what it gives is printed and not written")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for service.json and service.md")
    options = parser.parse_args()
    part = 20 if options.quick else 1
    load = {"begin": round(os.getloadavg()[0], 1)}
    result: dict[str, Any] = {"quick": options.quick, "cores": os.cpu_count(), "load": load}
    if options.only != "overhead":
        result |= under_traffic(part)
    if options.only != "traffic":
        result["overhead"] = overhead(part)
    load["end"] = round(os.getloadavg()[0], 1)
    if options.only:
        print(json.dumps(result, indent=1))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "service.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "service.md").write_text(page_of(result))
    print(page_of(result))


if __name__ == "__main__":
    main()
