"""Evaluations in shards. Each shard is a job that any worker claims; readers see it only through its parent, the job
that was posted.

While shards are left, no worker can claim the parent: it follows its shards, and passes requests on to them. After that
it is queued for a worker that merges their reports. Logical batches are never cut, so the merged report equals that of
an evaluation in one piece.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import literal_column, select
from sqlalchemy.orm import Session

from app.assets import assets
from app.jobs.history import append_events, change_jobs
from app.jobs.ingest import NO_PROGRESS
from app.jobs.moves import fail, leave, move
from app.platform import leases
from app.platform.database import now
from app.platform.ids import new_id
from app.platform.settings import Settings
from app.schemas import Failure, Progress, ShardState
from app.tables import CLAIMED, Dataset, Job
from core.schema.catalog import DATASETS
from core.schema.spec import AnySpec, EvaluateSpec

MAX_SHARDS = 16
"""Most shards of one evaluation; they are larger then."""


def count(session: Session, project_id: str, spec: AnySpec, settings: Settings) -> int:
    """Choose the number of shards of a job. 0: one piece, as where the number of points is not known."""
    if not isinstance(spec, EvaluateSpec) or not settings.shard_points:
        return 0
    known = _test_examples(session, project_id, spec.dataset)
    if known is None:
        return 0
    points = min(spec.evaluation.examples, known)
    batches = -(-points // spec.evaluation.batch_size)
    shards = min(-(-points // settings.shard_points), MAX_SHARDS, batches)
    return shards if shards > 1 else 0


def _test_examples(session: Session, project_id: str, dataset: str) -> int | None:
    """Count the test points of a data set that Temper ships, or of the project's own that was inspected."""
    own = assets.find(session, "dataset", project_id, dataset)
    if isinstance(own, Dataset) and own.summary:
        return int(own.summary["test_examples"])
    entry = DATASETS.get(dataset)
    return entry.test_examples if entry else None


def make(job: Job, retried: Sequence[Job]) -> list[Job]:
    """Build the shards of a new job. retried: the shards of the job that it is a retry of, which they continue."""
    before = {each.shard: each.id for each in retried}
    # Sorted, because shards are claimed in the order of their ids.
    ids = sorted(new_id("job") for _ in range(job.shard_count))
    return [
        Job(
            id=shard_id,
            project_id=job.project_id,
            fingerprint=job.fingerprint,
            kind=job.kind,
            name=job.name,
            base_model=job.base_model,
            dataset=job.dataset,
            priority=job.priority,
            requires=job.requires,
            spec=job.spec,
            warnings=[],
            labels={},
            status="queued",
            attempt=0,
            crashes=0,
            retry_of=before.get(number),
            parent_id=job.id,
            shard=number,
            shard_count=job.shard_count,
            event_seq=1,
        )
        for number, shard_id in enumerate(ids, start=1)
    ]


def of_job(session: Session, job_id: str, *, lock: bool = False) -> Sequence[Job]:
    """Read a job's shards by number. lock: keep others from changing them until the transaction ends."""
    query = select(Job).where(Job.parent_id == job_id).order_by(Job.shard)
    if lock:
        query = query.with_for_update()
    return session.scalars(query, execution_options={"populate_existing": True}).all()


def _of_jobs(session: Session, job_ids: Sequence[str]) -> Mapping[str, Sequence[Job]]:
    """Read the shards of several jobs in one query."""
    found: dict[str, list[Job]] = {job_id: [] for job_id in job_ids}
    if found:
        query = select(Job).where(Job.parent_id.in_(job_ids)).order_by(Job.parent_id, Job.shard)
        for shard in session.scalars(query, execution_options={"populate_existing": True}):
            found[shard.parent_id or ""].append(shard)
    return found


def update_parents(session: Session, job_id: str | None = None) -> None:
    """Let the jobs that wait for shards follow them. Any process may do this at any time.

    job_id: only this one.
    """
    # As the index has it: SQLite does not compare a parameter with that.
    waiting = select(Job).where(Job.shards_left > literal_column("0"), Job.finished_at.is_(None))
    if job_id:
        waiting = waiting.where(Job.id == job_id)
    parents = leases.lock_all(session, waiting, Job)
    found = _of_jobs(session, [job.id for job in parents])
    for job in parents:
        update_parent(session, job, found[job.id])


def update_parent(session: Session, job: Job, shards: Sequence[Job]) -> Job:
    """Show the state of a job's shards, and move the job where that requires it. The caller has locked the job."""
    job = _show_shards(session, job, shards)
    idle = not any(shard.status in CLAIMED for shard in shards)
    failed = next((shard for shard in shards if shard.status == "failed"), None)
    if job.status == "cancelling" and idle:
        return leave(session, job, "cancelled")
    if job.status == "queued" and (failed or not idle):
        (job,) = move(session, "running", Job.id == job.id, phase="evaluating", started_at=now())
    if failed and job.status in ("running", "pausing"):
        cancel(session, job)
        assert failed.failure
        failure = Failure.model_validate(failed.failure)
        message = f"Shard {failed.shard} of {failed.shard_count}: {failure.message}"
        fail(session, job, failure.model_copy(update={"message": message}))
    elif job.status == "pausing" and idle:
        return leave(session, job, "paused")
    elif job.status == "running" and job.shards_left == 0:
        return leave(session, job, "queued", event="job.gathered")
    return job


def _show_shards(session: Session, job: Job, shards: Sequence[Job]) -> Job:
    """Write what has changed in a job's shards into the job."""
    shown, before = show(shards), job.shards or []
    so_far = job.progress if job.status == "queued" else progress(shards).model_dump(mode="json")
    if (shown, so_far) == (before, job.progress):
        return job
    done = sum(shard.status == "succeeded" for shard in shards)
    changed = [new for new, old in zip(shown, before, strict=True) if new["status"] != old["status"]]
    values = {"shards": shown, "shards_left": len(shards) - done, "progress": so_far}
    (job,) = change_jobs(session, Job.id == job.id, events=len(changed), **values)
    counts = {"done": done, "count": len(shards)}
    events = [("shard", {"number": each["number"], "status": each["status"], **counts}) for each in changed]
    append_events(session, job, events)
    return job


def pause(session: Session, job: Job) -> Job:
    """Pause the shards of a job that is to pause."""
    of_job(session, job.id, lock=True)
    move(session, "paused", Job.parent_id == job.id, Job.status == "queued")
    move(session, "pausing", Job.parent_id == job.id, Job.status == "running", asked_at=now())
    return update_parent(session, job, of_job(session, job.id))


def cancel(session: Session, job: Job) -> None:
    """Cancel the shards of a job."""
    claimed = {shard.id for shard in of_job(session, job.id, lock=True) if shard.status in CLAIMED}
    for shard in move(session, "cancelling", Job.parent_id == job.id, asked_at=now()):
        if shard.id not in claimed:
            leave(session, shard, "cancelled")


def show(shards: Sequence[Job]) -> list[dict[str, Any]]:
    """Write what a job shows of its shards."""
    shown = [
        ShardState(
            number=shard.shard or 0,
            job=shard.id,
            status=shard.status,
            worker=shard.owner,
            attempt=shard.attempt,
            crashes=shard.crashes,
        )
        for shard in shards
    ]
    return [state.model_dump(mode="json") for state in shown]


def progress(shards: Sequence[Job]) -> Progress:
    """Add up the progress of the shards: each makes the same attacks, on its own points."""
    each = [Progress.model_validate(shard.progress) if shard.progress else NO_PROGRESS for shard in shards]
    total = max(one.attacks_total for one in each) * len(each)
    done = sum(one.attacks_done for one in each)
    fraction = done / total if total else 0.0
    values = {"subject": "result", "attacks_done": done, "attacks_total": total, "fraction": fraction}
    return NO_PROGRESS.model_copy(update=values)
