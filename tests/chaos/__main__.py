"""`make chaos`: the whole of a server under load, while its parts are killed, frozen, cut off and restarted at random.

`python -m tests.chaos --minutes 10 --seed 1` starts Postgres, Valkey, an S3 server, API and worker processes (with a
training process that learns nothing), and callers who post, pause, stop, cancel, retry and clone jobs and follow their
histories. Every few seconds something breaks. In the end all is mended, every job has to come to its end, and what was
answered, the rows and the objects are compared. The exit status is 1 where they disagree. The same seed draws the same
faults; what they hit, and when, is the machine's.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import select

from app.jobs.moves import TERMINAL
from app.platform.database import Database
from app.tables import Attempt, Job
from tests.chaos.callers import Caller, Follower, Memory
from tests.chaos.faults import FAULTS, Misfortune
from tests.chaos.town import BUDGETS, KEY, Town
from tests.support import invariants
from tests.support.instance import calling

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CALLERS, FOLLOWERS = 3, 2
PAUSE = (1.0, 5.0)
"""Seconds from one fault to the next."""
_SETTLES_WITHIN = 240


def main() -> int:
    """Run it and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="The service while its parts break.")
    parser.add_argument("--minutes", type=float, default=10, help="how long things break")
    parser.add_argument("--seed", type=int, default=1, help="which faults are drawn")
    parser.add_argument("--apis", type=int, default=2, help="API processes")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    parser.add_argument("--store", choices=["s3", "local"], default="s3", help="where files lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for chaos.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        town = Town(Path(folder), apis=chosen.apis, workers=chosen.workers, s3=chosen.store == "s3")
        with town:
            print(f"seed {chosen.seed}, {chosen.minutes:g} minutes, logs in {folder}", flush=True)
            told = run(town, seconds=60 * chosen.minutes, seed=chosen.seed)
        keep_logs(town, failed=bool(told["violations"]))
    text = describe(told, chosen)
    print(text)
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / "chaos.md").write_text(text)
    return 1 if told["violations"] else 0


def run(town, *, seconds, seed):
    """Let things break for so long, mend them, and find out what is wrong."""
    chance, memory, over = random.Random(seed), Memory(), threading.Event()
    misfortune = Misfortune(town, chance)
    people = [Caller(number, seed, town, memory, over) for number in range(CALLERS)]
    people += [Follower(number, seed, town, memory, over) for number in range(FOLLOWERS)]
    for each in people:
        each.start()
    begun = time.monotonic()
    try:
        break_things(misfortune, chance, seconds)
    finally:
        over.set()
        mended = wait_for(lambda: misfortune.mend(float("inf")), seconds=120)
    violations = misfortune.violations
    if not mended:
        violations.append("not everything could be mended")
    for api in town.members["api"]:
        town.wait_for(api)
    settled = settle(town, memory, violations)
    for each in people:
        each.join(300)
        if each.is_alive():
            violations.append(f"the {each.name} waits for ever")
    violations += memory.violations
    violations += stop_everything(town)
    return {
        "drawn": misfortune.drawn,
        "memory": memory,
        "violations": [*violations, *compare(town, memory)],
        "seconds": time.monotonic() - begun,
        "settled": settled,
        "attempts": read(town, select(Attempt)),
        "jobs": read(town, select(Job)),
        "tracebacks": tracebacks(town),
    }


def break_things(misfortune, chance, seconds):
    """Draw one fault after the other."""
    ends_at = time.monotonic() + seconds
    next_at = 0.0
    while (now := time.monotonic()) < ends_at:
        misfortune.mend(now)
        if now >= next_at:
            told = misfortune.draw(now)
            next_at = now + chance.uniform(*PAUSE)
            if told:
                print(f"{seconds - (ends_at - now):6.1f}  {told}", flush=True)
        time.sleep(0.05)


def wait_for(claim_holds, *, seconds):
    """Wait until it is so; say whether it came to be."""
    deadline = time.monotonic() + seconds
    while not claim_holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def settle(town, memory, violations):
    """Let every job come to its end, and give the seconds that it took."""
    begun = time.monotonic()
    (first, *_) = town.members["api"]
    with calling(first.url, KEY) as api:

        def all_have_ended():
            left = [job for job in every_job(api) if not job["is_terminal"]]
            for job in left:
                if job["status"] == "paused":
                    api.post(f"/jobs/{job['id']}/resume")
            return not left

        if not wait_for(all_have_ended, seconds=_SETTLES_WITHIN):
            left = [f"{job['id']} {job['status']}" for job in every_job(api) if not job["is_terminal"]]
            violations.append(f"after {_SETTLES_WITHIN} s of peace these have not ended: {left}")
    return time.monotonic() - begun


def every_job(api):
    """List all jobs."""
    after = {}
    while True:
        part = api.get("/jobs", params={"limit": 100, **after}).json()
        yield from part["data"]
        if not part["has_more"]:
            return
        after = {"after": part["last_id"]}


def stop_everything(town):
    """Stop the processes as an operator does; nothing of theirs may be left."""
    for member in town.all_members:
        member.tell_to_stop()
    for member in town.all_members:
        try:
            if not wait_for(member.has_stopped, seconds=120):
                yield f"{member.name} has not stopped"
        except AssertionError as error:
            yield str(error)
    if left := town.trainers():
        yield f"{len(left)} training processes have outlived their workers"


def compare(town, memory):
    """Compare what was answered, the rows and the objects."""
    jobs = {job.id: job for job in read(town, select(Job))}
    for key, job_id in memory.accepted.items():
        if job_id not in jobs:
            yield f"{job_id} was accepted for the key {key!r} and is not there"
    if extra := jobs.keys() - set(memory.accepted.values()):
        yield f"nobody was told of these jobs: {sorted(extra)}"
    for job_id, told in memory.ended.items():
        if job_id in jobs and jobs[job_id].status != told["status"]:
            yield f"{job_id} was {told['status']} at its end and is {jobs[job_id].status}"
    for job_id, seen in memory.histories.items():
        if job_id in jobs and seen != list(range(1, jobs[job_id].event_seq + 1)):
            yield f"the stream of {job_id} told {seen} of {jobs[job_id].event_seq} events"
    for job in jobs.values():
        if job.status not in TERMINAL:
            yield f"{job.id} is {job.status}"
    database = Database(town.database_url)
    try:
        invariants.check(database, town.store, max_crashes=BUDGETS["max_crashes"])
    except AssertionError as error:
        yield f"an invariant does not hold: {error}"
    finally:
        database.close()


def read(town, query):
    """Read rows past every way that could be broken."""
    database = Database(town.database_url)
    with database.reading() as session:
        rows = session.scalars(query).all()
        session.expunge_all()
    database.close()
    return rows


def tracebacks(town):
    """Count the errors that the processes' logs show with a traceback, by what they say last."""
    found = Counter()
    for member in town.all_members:
        is_in_one = False
        for line in member.log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback "):
                is_in_one = True
            elif is_in_one and line[:1].strip():
                is_in_one = False
                found[f"{member.name.split()[0]}: {line.replace(str(town.folder), '...')[:120]}"] += 1
    return found


def keep_logs(town, *, failed):
    """Copy the logs out of the folder that goes away, where somebody will want to read them."""
    if failed:
        kept = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
        for member in town.all_members:
            (kept / member.log.name).write_bytes(member.log.read_bytes())
        print(f"logs kept in {kept}")


def describe(told, chosen):
    """Write down what broke, what was seen after each fault, and what is wrong, if anything."""
    memory, attempts = told["memory"], told["attempts"]
    started = time.time() - time.monotonic()
    moments = [moment + started for moment, _, _ in told["drawn"]] + [time.time()]
    seen = {fault.name: Counter() for fault in FAULTS}
    ended = [(each.ended_at.timestamp(), each.outcome) for each in attempts if each.ended_at]
    for (_, fault, _), begin, end in zip(told["drawn"], moments, moments[1:], strict=False):
        here = seen[fault.name]
        here["drawn"] += 1
        here["refused"] += sum(begin <= moment < end and status == 503 for moment, status in memory.refused)
        here["silent"] += sum(begin <= moment < end and status == 0 for moment, status in memory.refused)
        for outcome in ("lost", "handed_back"):
            here[outcome] += sum(begin <= moment < end and how == outcome for moment, how in ended)
    status = Counter(job.status for job in told["jobs"])
    outcomes = Counter(each.outcome for each in attempts)
    worst = max((job.attempt for job in told["jobs"]), default=0)
    lines = [
        "# Chaos",
        "",
        f"`python -m tests.chaos --minutes {chosen.minutes:g} --seed {chosen.seed} --apis {chosen.apis} --workers "
        f"{chosen.workers} --store {chosen.store}` on {os.cpu_count()} cores, in {told['seconds']:.0f} s.",
        "",
        f"- {len(told['jobs'])} jobs were accepted. They ended: {in_words(status)}. The last one did "
        f"{told['settled']:.0f} s after everything was mended.",
        f"- Attempts: {len(attempts)}, at most {worst} for one job. They ended: {in_words(outcomes)}.",
        f"- Answers to callers: {in_words(memory.answers)}.",
        f"- {len(memory.histories)} histories were followed to their end, each event seen once, in order."
        if not told["violations"]
        else f"- {len(memory.histories)} histories were followed.",
        f"- Errors with a traceback in the logs: {in_words(told['tracebacks']) or 'none'}.",
        "",
        f"**Violations: {len(told['violations']) or 'none'}.**",
        *(f"- {each}" for each in told["violations"]),
        "",
        "What was seen from each fault to the next one (they overlap, so this is where, not why): answers of 503, "
        "requests without an answer, attempts that ended lost, and handed back.",
        "",
        "| fault | drawn | 503 | no answer | lost | handed back |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, count in seen.items():
        shown = [count[each] for each in ("drawn", "refused", "silent", "lost", "handed_back")]
        lines.append(f"| {name} | {' | '.join(map(str, shown))} |")
    return "\n".join(lines) + "\n"


def in_words(counts):
    """Say counts, the largest first."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
