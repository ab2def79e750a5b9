"""What requests take on a service that has run for long, beside an empty one in the same run.

`python -m benchmarks.history` fills Postgres with 100,000 jobs, 300,000 attempts, 1,000,000 events and as many steps of
curves, and SQLite with a tenth of that, and asks at ten requests a second: every list with every filter, and what else
reads or counts. `--scale 0.1` fills a tenth of both, `--database` takes one of them. It takes about a quarter of an
hour. Results go to `benchmarks/results/history.json` and `.md`.
"""

import argparse
import json
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

from app.jobs import claims, lifecycle
from app.main import create_app
from app.operations import deletion, garbage_collection
from app.platform.database import Database
from app.schemas.job_request import parse_request
from benchmarks.service import in_ms, share
from tests.support.history import Long, Scale, analyse, fill
from tests.support.instance import DIGITS, add_key, add_project, calling, new_instance, serving
from tests.support.lists import lists
from tests.support.servers import postgres
from tests.support.sql_statements import sent
from tests.support.work import costs

RESULTS = Path(__file__).parent / "results"
PER_SECOND = 10
REPEATS = 100
JOBS, EVENTS, OTHERS = 100_000, 1_000_000, 10_000
LIMITS_MS = {"usage": 500, "usage by day": 500, "usage by base_model": 500, "claim": 20}
"""Of the p99; of the others 100 ms."""

Ask = Callable[[], None]


class Filled:
    """One instance, and what can be asked of it."""

    def __init__(self, stack: ExitStack, folder: Path, url: str | None, scale: Scale | None) -> None:
        chosen: dict[str, Any] = {"database_url": url} if url else {}
        without_limits: dict[str, Any] = {"rate_limit": 1_000_000, "quota_queued_jobs": None}
        self.settings, self.database = stack.enter_context(new_instance(folder, **without_limits, **chosen))
        project = add_project(self.database)
        self.project_id = project.id
        begun = time.perf_counter()
        self.long = fill(self.database, project.id, scale) if scale else _one_job(self.database, project.id)
        self.filled_in = time.perf_counter() - begun
        analyse(self.database)
        address = stack.enter_context(serving(self.settings, self.database, periodic_tasks=()))
        self.api = stack.enter_context(calling(address, add_key(self.database, project)))

    def requests(self) -> dict[str, Ask]:
        """What is timed by itself."""
        curve = f"/jobs/{self.long.job_id}/metrics"
        return {
            "post": self._asker("POST", "/jobs", json=DIGITS),
            "me": self._asker("GET", "/me"),
            "usage": self._asker("GET", "/usage"),
            "usage by day": self._asker("GET", "/usage", params={"group_by": "day"}),
            "usage by base_model": self._asker("GET", "/usage", params={"group_by": "base_model"}),
            "metrics of the long job": self._asker("GET", curve),
            "claim": self._claim,
        }

    def lists(self) -> dict[str, Ask]:
        """Each list with each filter, and the same with all filters at once."""
        asked = {}
        for path, filters in lists(create_app(self.settings, self.database).openapi()):
            address = path.format(job_id=self.long.job_id, webhook_id=self.long.webhook_id)
            last = {name: values[-1] for name, values in filters.items()}
            for chosen in [{}, *({name: value} for name, values in filters.items() for value in values), last]:
                name = " ".join([path, *(f"{key}={value}" for key, value in chosen.items())])
                asked[name] = self._asker("GET", address, params=chosen)
        return asked

    def _asker(self, method: str, path: str, **options: Any) -> Ask:
        def ask() -> None:
            answer = self.api.request(method, path, **options)
            assert answer.is_success, answer.text

        return ask

    def _claim(self) -> None:
        with self.database.writing() as session:
            assert claims.claim(session, worker="w", lease_seconds=3600, retry_policy=claims.RetryPolicy(max_crashes=5))


def _one_job(database: Database, project_id: str) -> Long:
    with database.writing() as session:
        job_id = lifecycle.create(session, project_id, parse_request(DIGITS)).job.id
    return Long(job_id, "whk_" + job_id.removeprefix("job_"))


def paced(asks: Sequence[Ask], count: int) -> list[float]:
    """Ask `count` times at an even rate, in turn; the time of each from when it was due."""
    took, begun = [], time.perf_counter()
    for place in range(count):
        due = begun + place / PER_SECOND
        time.sleep(max(due - time.perf_counter(), 0))
        asks[place % len(asks)]()
        took.append(time.perf_counter() - due)
    return took


def measure(instance: Filled, repeats: int) -> dict[str, Any]:
    """Time each request, and all lists in turn; and what each costs the database."""
    found: dict[str, Any] = {}
    for name, ask in instance.requests().items():
        if name == "claim":
            post = instance.requests()["post"]
            for _ in range(repeats):
                post()
        found[name] = in_ms(paced([ask], repeats)) | _work(instance.database, ask)
    all_lists = {
        name: ask for name, ask in instance.lists().items() if instance.filled_in > 1 or "{webhook_id}" not in name
    }
    for ask in all_lists.values():
        ask()
    times = paced(list(all_lists.values()), max(repeats * 6, len(all_lists)))
    slowest = {name: max(times[place :: len(all_lists)]) for place, name in enumerate(all_lists)}
    worst = max(slowest, key=lambda name: slowest[name])
    found["lists"] = in_ms(times) | {"slowest": worst, "slowest_ms": round(1000 * slowest[worst], 1)}
    found["lists"]["most_rows"] = max(_work(instance.database, ask)["work"] for ask in all_lists.values())
    return found


def _work(database: Database, ask: Ask) -> dict[str, int]:
    with sent(database) as statements:
        ask()
    return {"statements": len(statements), "work": sum(costs(database, statements))}


class Listed:
    """A store that has three objects of each job, as far as a sweep sees it."""

    def __init__(self, job_ids: Sequence[str]) -> None:
        self._keys = sorted(f"jobs/{each}/attempts/1/{name}" for each in job_ids for name in ("a", "b", "c"))
        self._there = frozenset(self._keys)
        self.deleted = 0

    def keys(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """List them."""
        start = bisect_right(self._keys, max(after, prefix))
        return (key for key in islice(self._keys, start, None) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Count, and keep."""
        self.deleted += key in self._there


def sweep(instance: Filled) -> dict[str, Any]:
    """Time a sweep of orphans through all objects, and its longest part."""
    with instance.database.reading() as session:
        job_ids = session.scalars(garbage_collection.select(lifecycle.Job.id)).all()
    store: Any = Listed(job_ids)
    place, parts = garbage_collection.Place(), []
    with sent(instance.database) as statements:
        while not parts or place.after:
            begun = time.perf_counter()
            garbage_collection.sweep_orphans(instance.database, store, place)
            parts.append(time.perf_counter() - begun)
    return {"jobs": len(job_ids), "seconds": round(sum(parts), 1), "longest_part_s": round(max(parts), 1)} | {
        "statements": len(statements),
        "deleted": store.deleted,
    }


def delete_the_long_job(instance: Filled) -> dict[str, Any]:
    """Delete the job with the longest history, and time the posts of others meanwhile."""
    begun = time.perf_counter()
    assert instance.api.delete(f"/jobs/{instance.long.job_id}").is_success
    answered = time.perf_counter() - begun
    stopping, posts = Event(), []
    post = instance.requests()["post"]

    def keep_posting() -> None:
        while not stopping.is_set():
            posts.extend(paced([post], 5))

    thread = Thread(target=keep_posting)
    thread.start()
    while True:
        deletion.delete_jobs(deletion.Round(instance.database, Event()))
        with instance.database.reading() as session:
            if not deletion.leftovers.deleted(session, limit=1):
                break
    stopping.set()
    thread.join()
    return {"answered_ms": round(1000 * answered, 1), "seconds": round(time.perf_counter() - begun, 1)} | {
        "posts_meanwhile": in_ms(posts) | {"max_ms": round(1000 * share(posts, 1), 1)}
    }


def run(kind: str, scale: float, repeats: int) -> dict[str, Any]:
    """Fill one database, and ask both instances."""
    of_kind = scale if kind == "postgres" else scale / 10
    size = Scale(jobs=int(JOBS * of_kind), events=int(EVENTS * of_kind), others=max(int(OTHERS * of_kind), 100))
    with ExitStack() as stack:
        urls: list[str | None] = [None, None]
        if kind == "postgres":
            server = stack.enter_context(postgres(durable=True))
            urls = [server.create_database("empty"), server.create_database("full")]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        empty = Filled(stack, folder / "empty", urls[0], None)
        full = Filled(stack, folder / "full", urls[1], size)
        found: dict[str, Any] = {"rows": vars(size) | {"filled_in_s": round(full.filled_in, 1)}}
        found["empty"], found["full"] = measure(empty, repeats), measure(full, repeats)
        found["sweep"] = sweep(full)
        found["deletion"] = delete_the_long_job(full)
    return found


def table(found: dict[str, Any]) -> str:
    """Write the results for people."""
    lines = [
        "# Requests on a service with a history",
        "",
        "By `python -m benchmarks.history`: ten requests a second, in milliseconds from when each was due. Work: rows",
        "that Postgres reads, tens of steps of SQLite's machine.",
    ]
    for kind, of_kind in found.items():
        rows = ", ".join(f"{count:,} {name}" for name, count in of_kind["rows"].items() if name in ("jobs", "events"))
        lines += [
            "",
            f"## {kind}: {rows}",
            "",
            "| request | p50 empty | p50 | p99 empty | p99 | aim | work empty | work |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for name, full in of_kind["full"].items():
            empty, aim = of_kind["empty"][name], LIMITS_MS.get(name, 100)
            work = full.get("work", full.get("most_rows"))
            before = empty.get("work", empty.get("most_rows"))
            times = f"{empty['p50_ms']} | {full['p50_ms']} | {empty['p99_ms']} | {full['p99_ms']}"
            lines.append(f"| {name} | {times} | {aim} | {before} | {work} |")
        swept, gone = of_kind["sweep"], of_kind["deletion"]
        lines += [
            "",
            f"A sweep of orphans through {swept['jobs']:,} jobs takes {swept['seconds']} s and {swept['statements']} "
            f"statements; its longest part {swept['longest_part_s']} s. The deletion of the longest job is answered "
            f"after {gone['answered_ms']} ms; its rows are gone after {gone['seconds']} s, while posts take "
            f"{gone['posts_meanwhile']['p99_ms']} ms (p99).",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Fill, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the rows")
    parser.add_argument("--database", choices=("postgres", "sqlite"), help="only this one")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each request")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    # Before the measurement, which would be lost if the folder could not be made.
    given.out.mkdir(parents=True, exist_ok=True)
    kinds = [given.database] if given.database else ["postgres", "sqlite"]
    found = {kind: run(kind, given.scale, given.repeats) for kind in kinds}
    (given.out / "history.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "history.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
