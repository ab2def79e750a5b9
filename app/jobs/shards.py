"""A large evaluation in shards: each is a job of its own that any worker claims, and that nobody sees but through the
job that was posted. How many there are, what they are, and what that job shows of them; its life is in
`app.jobs.lifecycle`.

Logical batches are never cut, so the shards' reports merge to the very report of the whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.assets import assets
from app.jobs.ingest import NO_PROGRESS
from app.platform.ids import new_id
from app.platform.settings import Settings
from app.schemas import Progress, ShardState
from app.tables import Dataset, Job
from core.schema.catalog import DATASETS
from core.schema.spec import AnySpec, EvaluateSpec

MAX_SHARDS = 16
"""Most shards of one evaluation; they are larger then."""


def count(session: Session, project_id: str, spec: AnySpec, settings: Settings) -> int:
    """Say in how many shards a job is to be made; 0 for one piece, as it is where nobody knows how many points there
    are."""
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
    """Say how many test points a data set has: a built-in one, or one of the project's own that was inspected."""
    own = assets.find(session, "dataset", project_id, dataset)
    if isinstance(own, Dataset) and own.summary:
        return int(own.summary["test_examples"])
    entry = DATASETS.get(dataset)
    return entry.test_examples if entry else None


def make(job: Job, retried: Sequence[Job]) -> list[Job]:
    """Make the shards of a new job; those of a retry go on from those before them."""
    before = {each.shard: each.id for each in retried}
    # In order, for they are claimed by their ids.
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


def of(session: Session, job_id: str, *, lock: bool = False) -> Sequence[Job]:
    """Read a job's shards by number; with `lock`, nobody else changes them until the transaction ends."""
    query = select(Job).where(Job.parent_id == job_id).order_by(Job.shard)
    if lock:
        query = query.with_for_update()
    return session.scalars(query, execution_options={"populate_existing": True}).all()


def of_each(session: Session, job_ids: Sequence[str]) -> Mapping[str, Sequence[Job]]:
    """Read the shards of several jobs, each job's by number, in one look."""
    found: dict[str, list[Job]] = {job_id: [] for job_id in job_ids}
    if found:
        query = select(Job).where(Job.parent_id.in_(job_ids)).order_by(Job.parent_id, Job.shard)
        for shard in session.scalars(query, execution_options={"populate_existing": True}):
            found[shard.parent_id or ""].append(shard)
    return found


def show(shards: Sequence[Job]) -> list[dict[str, Any]]:
    """Say what the whole shows of its shards."""
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
    """Add up how far the shards are: each makes the same attacks, on its own points."""
    each = [Progress.model_validate(shard.progress) if shard.progress else NO_PROGRESS for shard in shards]
    total = max(one.attacks_total for one in each) * len(each)
    done = sum(one.attacks_done for one in each)
    fraction = done / total if total else 0.0
    values = {"subject": "result", "attacks_done": done, "attacks_total": total, "fraction": fraction}
    return NO_PROGRESS.model_copy(update=values)
