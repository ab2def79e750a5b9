"""What must hold of every job at every moment, whatever befell workers, database and store."""

import hashlib
from collections import Counter
from itertools import pairwise

from sqlalchemy import select

from app.jobs.leases import log_key
from app.jobs.moves import TERMINAL
from app.platform.database import Database
from app.storage import ObjectStore
from app.tables import CLAIMED, Attempt, Checkpoint, Event, Job, State

ENDS = {f"job.{status}" for status in TERMINAL}
STATUS_AFTER = {
    "job.created": "queued",
    "job.claimed": "running",
    "job.recovered": "queued",
    "job.handed_back": "queued",
    "job.resumed": "queued",
    "job.gathered": "queued",
}
"""The status that an entry of the history tells of; any other `job.x` tells of x."""


def check(database: Database, store: ObjectStore | None = None, *, max_crashes: int | None = None) -> None:
    """Check all jobs; with a store, also that it holds what the rows name."""
    with database.reading() as session:
        for job in session.scalars(select(Job)):
            events = session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.seq)).all()
            attempts = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)).all()
            checkpoints = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)).all()
            states = session.scalars(select(State).where(State.job_id == job.id)).all()
            check_history(job, events)
            check_progress(job, events)
            check_ownership(job, attempts)
            check_crashes(job, attempts, events, max_crashes)
            check_files(job, checkpoints, states)
            shards = session.scalars(select(Job).where(Job.parent_id == job.id).order_by(Job.shard)).all()
            check_shards(job, shards, [event for event in events if event.type == "shard"])
            if store:
                named = [(each.key, each.sha256) for each in (*checkpoints, *states)]
                if job.report_key:
                    named.append((job.report_key, job.report_sha256))
                for key, sha256 in named:
                    assert hash_of(store, key) == sha256, f"{key} is not what its row says"
                for attempt in attempts:
                    parts = [log_key(job.id, attempt.attempt, part + 1) for part in range(attempt.log_parts)]
                    assert sum(store.size(part) for part in parts) == attempt.log_size


def check_history(job, events):
    """The history has no gap, tells of every move in order, ends once, and says nothing after that."""
    assert [event.seq for event in events] == list(range(1, job.event_seq + 1)), f"{job.id}: a gap in its history"
    kinds = [event.type for event in events]
    ends = [kind for kind in kinds if kind in ENDS]
    assert len(ends) == (job.status in TERMINAL), f"{job.id} is {job.status} and ended by {ends}"
    if ends:
        assert kinds[-1] == ends[0] == f"job.{job.status}"
    moves = [STATUS_AFTER.get(kind, kind.removeprefix("job.")) for kind in kinds if kind.startswith("job.")]
    assert moves[-1] == job.status
    times = [event.created_at for event in events]
    assert Counter(kinds)["job.claimed"] == job.attempt
    assert len(times) == len(events)


def check_progress(job, events):
    """Within an attempt the saved states go forward, from the one that it went on from."""
    reached = -1
    for event in events:
        if event.type == "job.claimed":
            reached = -1
        elif event.type == "resumed":
            reached = event.data["step"]
        elif event.type == "saved" and event.data["kind"] == "state":
            assert event.data["step"] > reached, f"{job.id}: a state of step {event.data['step']} after {reached}"
            reached = event.data["step"]


def check_ownership(job, attempts):
    """A job has a lease as long as a worker has it, one attempt per claim, and at most one that goes on: the last. What
    waits for its shards no worker has."""
    held = job.status in CLAIMED and job.shards_left == 0
    assert (job.lease_until is not None) == held, f"{job.id} is {job.status}: {job.lease_until}"
    assert [attempt.attempt for attempt in attempts] == list(range(1, job.attempt + 1))
    going_on = [attempt.attempt for attempt in attempts if attempt.ended_at is None]
    assert going_on == ([job.attempt] if held else []), f"{job.id} is {job.status}: {going_on} go on"
    assert all((attempt.outcome is None) == (attempt.ended_at is None) for attempt in attempts)
    ended = [attempt.attempt for attempt in attempts if attempt.outcome in TERMINAL]
    assert len(ended) <= 1
    assert all(earlier.ended_at <= later.started_at for earlier, later in pairwise(attempts)), f"{job.id}: at once"
    assert (job.finished_at is not None) == (job.status in TERMINAL)
    assert (job.failure is not None) == (job.status == "failed")
    assert job.phase is None or job.status in CLAIMED


def check_crashes(job, attempts, events, max_crashes):
    """Crashes are counted once each, and a job with too many of them goes no further."""
    lost = sum(attempt.outcome == "lost" for attempt in attempts)
    assert job.crashes_in_place <= job.crashes
    # A worker that did not heed a cancel, or vanished over it, is lost, but nobody will start that job again.
    counted = {event.data["attempt"] for event in events if event.type in ("job.recovered", "job.paused")}
    uncounted = job.status == "cancelled" and attempts and attempts[-1].outcome == "lost" and job.attempt not in counted
    assert lost - bool(uncounted) == job.crashes, f"{job.id}: {lost} attempts lost, {job.crashes} counted"
    if max_crashes is not None:
        assert job.crashes <= max_crashes
        assert job.status != "queued" or job.crashes < max_crashes


def check_files(job, checkpoints, states):
    """What rows name belongs to one of the job's own attempts."""
    assert job.checkpoint_id is None or job.checkpoint_id in {checkpoint.id for checkpoint in checkpoints}
    for each in (*checkpoints, *states):
        assert each.key.startswith(f"jobs/{job.id}/attempts/{each.attempt}/")
        assert 1 <= each.attempt <= job.attempt
    assert all(count <= 2 for count in Counter(state.kind for state in states).values())


def check_shards(job, shards, told):
    """A job in shards has all of them as long as it is there, knows of what they have done no more than they do, and
    none of them goes on where it does not."""
    if job.parent_id:
        assert 1 <= job.shard <= job.shard_count
        assert (job.shards, job.shards_left, shards, told) == (None, 0, [], [])
        return
    shown = job.shards or []
    assert [shard.shard for shard in shards] == list(range(1, job.shard_count + 1))
    assert [each["job"] for each in shown] == [shard.id for shard in shards]
    if not shards:
        assert job.shards_left == 0
        return
    left = sum(shard.status != "succeeded" for shard in shards)
    assert left <= job.shards_left, f"{job.id} believes that {job.shards_left} shards are left, of {left}"
    if job.attempt or job.status == "succeeded":
        assert job.shards_left == left == 0
    if job.status == "paused":
        assert {shard.status for shard in shards} <= {"paused", "succeeded"}
    if job.status in ("failed", "cancelled", "cancelling"):
        assert {shard.status for shard in shards} <= {"cancelling", *TERMINAL}
    for each in shown:
        said = [event.data["status"] for event in told if event.data["number"] == each["number"]]
        assert ["queued", *said][-1] == each["status"]


def hash_of(store: ObjectStore, key: str) -> str:
    """Hash an object."""
    digest = hashlib.sha256()
    for chunk in store.read(key):
        digest.update(chunk)
    return digest.hexdigest()
