"""Estimates of what a job will take, from similar jobs that have finished here; and measures of what it has taken.

Only jobs count that succeeded in one attempt, without shards and up to their last step. The time that such a job took
to start is kept; the rest is scaled by the ratio of the passes through the network, as `core.schema.cost_model` counts
them. Other differences, such as the device, show in the spread of the estimate.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from app.platform.database import Timestamp, now
from app.projects import totals
from app.schemas import Actual, Duration, Estimate
from app.schemas.job_request import parse_request
from app.tables import Attempt, Checkpoint, Job, PastRun
from core.schema.catalog import DATASETS, MODELS
from core.schema.cost_model import Size, passes_of_run
from core.schema.spec import AnySpec, EvaluateSpec, TrainSpec

MOST_RUNS = 20
"""The number of latest jobs that an estimate uses."""


@dataclass(frozen=True)
class _Run:
    """A job that has finished."""

    spec: AnySpec
    kept: PastRun


def predict(session: Session, project_id: str, spec: AnySpec) -> Estimate:
    """Estimate time and bytes of a job of this project."""
    alike = _finished(session, PastRun.alike == same_kind(project_id, spec))
    found = alike or _finished(session, PastRun.network == same_pace(project_id, spec))
    size = Size.of(spec.dataset) or _size_by(found, spec)
    passes = passes_of_run(spec, size).total if size else None
    if not found or not size or not passes:
        subject = getattr(spec, "base_model", None) or getattr(spec, "architecture", None)
        return Estimate(
            seconds=None,
            peak_memory_bytes=None,
            storage_bytes=None,
            passes=None if passes is None else round(passes),
            basis="none",
            runs=0,
            unavailable_reason=f"no job of the network of {subject} on {spec.dataset} has finished here yet, so "
            "the time of a pass through it is unknown; run a job with few examples and epochs to measure it",
        )
    return Estimate(
        seconds=_spread([_scaled(run, passes, size) for run in found]),
        peak_memory_bytes=_most(run.kept.peak_memory_bytes for run in alike if _batches(run.spec) == _batches(spec)),
        storage_bytes=_most(run.kept.stored_bytes for run in found if _delivers(run.spec) == _delivers(spec)),
        passes=round(passes),
        basis="history" if alike else "passes",
        runs=len(found),
        unavailable_reason=None,
    )


def measure(session: Session, job_id: str) -> Actual:
    """Measure what a job and its shards have taken so far."""
    ids = totals.with_shards(session, [job_id])
    ended = func.coalesce(Attempt.ended_at, now(), type_=Timestamp())
    told = select(Attempt.started_at, ended, Attempt.peak_memory_bytes).where(Attempt.job_id.in_(ids))
    attempts = session.execute(told).all()
    return Actual(
        seconds=sum((until - since).total_seconds() for since, until, _ in attempts),
        peak_memory_bytes=_most(peak for _, _, peak in attempts),
        storage_bytes=sum(_stored(session, ids).values()),
    )


def keep_run(session: Session, job: Job) -> None:
    """Keep what a job that has succeeded tells about others, if it does."""
    if job.attempt != 1 or job.stopped_early or job.shard_count:
        return
    attempt = session.get_one(Attempt, (job.id, 1), populate_existing=True)
    reported = attempt.working_seconds, attempt.train_examples, attempt.test_examples
    if attempt.ended_at is None or None in reported:
        return
    spec = parse_request(job.spec)
    run = PastRun(
        job_id=job.id,
        network=same_pace(job.project_id, spec),
        alike=same_kind(job.project_id, spec),
        spec=job.spec,
        seconds=(attempt.ended_at - attempt.started_at).total_seconds(),
        working_seconds=attempt.working_seconds,
        train_examples=attempt.train_examples,
        test_examples=attempt.test_examples,
        peak_memory_bytes=attempt.peak_memory_bytes,
        stored_bytes=_stored(session, [job.id]).get(job.id, 0),
    )
    session.add(run)


def same_pace(project_id: str, spec: AnySpec) -> str:
    """Build the key that jobs of the same pace share: network, data set and number of GPUs; and the project where a
    name may stand for something else in another one."""
    model = None if isinstance(spec, TrainSpec) else spec.base_model
    same_for_all = spec.dataset in DATASETS and (model is None or model in MODELS)
    if isinstance(spec, TrainSpec):
        network = f"architecture {spec.architecture}"
    elif model and model in MODELS:
        network = f"architecture {MODELS[model].architecture}"
    else:
        network = f"model {model}"
    owner = "" if same_for_all else project_id
    return json.dumps([owner, network, spec.dataset, getattr(spec, "gpus", 1)])


def same_kind(project_id: str, spec: AnySpec) -> str:
    """Build the key that jobs of the same pace, kind, model and method share."""
    start = spec.architecture if isinstance(spec, TrainSpec) else spec.base_model
    method = None if isinstance(spec, EvaluateSpec) else spec.method.name
    return json.dumps([same_pace(project_id, spec), spec.kind, start, method])


def _finished(session: Session, which: ColumnElement[bool]) -> list[_Run]:
    """Find the latest of these jobs."""
    kept = session.scalars(select(PastRun).where(which).order_by(PastRun.job_id.desc()).limit(MOST_RUNS))
    return [_Run(parse_request(run.spec), run) for run in kept]


def _size_by(runs: Sequence[_Run], spec: AnySpec) -> Size | None:
    """Return the size of a data set that is not in the catalogue, as reported by the runs on it."""
    if not runs:
        return None
    trained = [run.kept.train_examples for run in runs]
    # A run that took as many points as it asked for may have left some.
    asked = [run.kept.test_examples >= run.spec.evaluation.examples for run in runs]
    tested = [run.kept.test_examples for run in runs]
    known = getattr(spec, "train_examples", None) or max(trained)
    return Size(known, spec.evaluation.examples if all(asked) else max(tested))


def _scaled(run: _Run, passes: float, size: Size) -> float:
    """Return the seconds that a job of this number of passes would have taken on the machine of this run."""
    working = min(run.kept.working_seconds, run.kept.seconds)
    return float(run.kept.seconds - working + working * passes / passes_of_run(run.spec, size).total)


def _spread(seconds: Sequence[float]) -> Duration:
    if len(seconds) == 1:
        return Duration(p50=seconds[0], p90=seconds[0])
    return Duration(p50=median(seconds), p90=quantiles(seconds, n=10, method="inclusive")[-1])


def _batches(spec: AnySpec) -> tuple[int | None, int]:
    return getattr(spec, "batch_size", None), spec.evaluation.batch_size


def _delivers(spec: AnySpec) -> bool:
    return not isinstance(spec, EvaluateSpec)


def _stored(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Add up what checkpoints and logs of jobs take."""
    stored: dict[str, int] = {}
    for job_id, size in ((Checkpoint.job_id, Checkpoint.size), (Attempt.job_id, Attempt.log_size)):
        sums = select(job_id, func.sum(size)).where(job_id.in_(job_ids)).group_by(job_id)
        for row in session.execute(sums).all():
            stored[row[0]] = stored.get(row[0], 0) + int(row[1])
    return stored


def _most(values: Any) -> int | None:
    return max((int(value) for value in values if value is not None), default=None)
