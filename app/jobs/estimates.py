"""Estimates of what a job will take, from similar jobs that have finished here; and measures of what it has taken.

Only jobs count that succeeded in one attempt, without shards and up to their last step. The time that such a job took
to start is kept; the rest is scaled by the ratio of the passes through the network, as `core.schema.cost_model` counts
them. Other differences, such as the device, show in the spread of the estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median, quantiles
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from app.platform.database import Timestamp, now
from app.projects import usage
from app.schemas import Actual, Duration, Estimate
from app.schemas.job_request import parse_request
from app.tables import Attempt, Checkpoint, Event, Job
from core.schema.catalog import DATASETS, MODELS
from core.schema.cost_model import Size, passes_of_run
from core.schema.spec import AnySpec, EvaluateSpec, TrainSpec

MOST_RUNS = 20
"""The number of latest jobs that an estimate uses."""


@dataclass(frozen=True)
class _Run:
    """A job that has finished."""

    spec: AnySpec
    seconds: float
    """Time at work of its attempt."""
    started: dict[str, Any]
    """What it reported at its beginning."""
    finished: dict[str, Any]
    """What it reported at its end."""
    stored: int
    """Bytes that its checkpoints and its log take."""


def predict(session: Session, project_id: str, spec: AnySpec) -> Estimate:
    """Estimate time and bytes of a job of this project."""
    known = _visible(project_id, spec)
    alike = _finished(session, spec, *known, *_like(spec))
    found = alike or _finished(session, spec, *known)
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
        peak_memory_bytes=_most(
            run.finished["peak_memory_bytes"] for run in alike if _batches(run.spec) == _batches(spec)
        ),
        storage_bytes=_most(run.stored for run in found if _delivers(run.spec) == _delivers(spec)),
        passes=round(passes),
        basis="history" if alike else "passes",
        runs=len(found),
        unavailable_reason=None,
    )


def measure(session: Session, job_id: str) -> Actual:
    """Measure what a job and its shards have taken so far."""
    ids = session.scalars(select(Job.id).where(or_(Job.id == job_id, Job.parent_id == job_id))).all()
    ended = func.coalesce(Attempt.ended_at, now(), type_=Timestamp())
    attempts = session.execute(select(Attempt.started_at, ended).where(Attempt.job_id.in_(ids))).all()
    finished = select(Event.data).where(Event.job_id.in_(ids), Event.type == "finished")
    return Actual(
        seconds=sum(_seconds(*attempt) for attempt in attempts),
        peak_memory_bytes=_most(data["peak_memory_bytes"] for data in session.scalars(finished)),
        storage_bytes=sum(_stored(session, ids).values()),
    )


def _visible(project_id: str, spec: AnySpec) -> list[ColumnElement[bool]]:
    """Whose jobs may speak: a name that is not the catalogue's may stand for something else in another project."""
    same_for_all = spec.dataset in DATASETS and (isinstance(spec, TrainSpec) or spec.base_model in MODELS)
    return [] if same_for_all else [Job.project_id == project_id]


def _like(spec: AnySpec) -> list[ColumnElement[bool]]:
    """The conditions under which a job is of the same kind, model and method."""
    same = [Job.kind == spec.kind]
    if isinstance(spec, TrainSpec):
        same.append(Job.spec["architecture"].as_string() == spec.architecture)
    else:
        same.append(Job.base_model == spec.base_model)
    if not isinstance(spec, EvaluateSpec):
        same.append(Job.spec["method"]["name"].as_string() == spec.method.name)
    return same


def _finished(session: Session, spec: AnySpec, *where: ColumnElement[bool]) -> list[_Run]:
    """Find the latest jobs that have finished with the same network, data set and number of GPUs."""
    gpus = usage.GPUS_WANTED == getattr(spec, "gpus", 1)  # noqa: SIM300  # a column, no constant
    whole = Job.status == "succeeded", Job.attempt == 1, Job.stopped_early.is_(False), Job.shard_count == 0
    of_job = Attempt.job_id == Job.id
    query = select(Job.id, Job.spec, Attempt.started_at, Attempt.ended_at).join(Attempt, of_job)
    query = query.where(Job.dataset == spec.dataset, *whole, _same_network(spec), gpus, *where)
    rows = session.execute(query.order_by(Job.id.desc()).limit(MOST_RUNS)).all()
    if not rows:
        return []
    ids = [row.id for row in rows]
    told = select(Event.job_id, Event.type, Event.data).where(Event.job_id.in_(ids))
    events = {
        (row.job_id, row.type): row.data
        for row in session.execute(told.where(Event.type.in_(("started", "finished")))).all()
    }
    stored = _stored(session, ids)
    return [
        _Run(
            spec=parse_request(row.spec),
            seconds=_seconds(row.started_at, row.ended_at),
            started=events[row.id, "started"],
            finished=events[row.id, "finished"],
            stored=stored.get(row.id, 0),
        )
        for row in rows
        if {(row.id, "started"), (row.id, "finished")} <= events.keys()
    ]


def _same_network(spec: AnySpec) -> ColumnElement[bool]:
    """Whether a job's network is that of the spec, as far as the catalogue knows."""
    if isinstance(spec, TrainSpec):
        architecture = spec.architecture
    elif spec.base_model in MODELS:
        architecture = MODELS[spec.base_model].architecture
    else:
        return Job.base_model == spec.base_model
    models = [model.name for model in MODELS.values() if model.architecture == architecture]
    return or_(Job.base_model.in_(models), Job.spec["architecture"].as_string() == architecture)


def _size_by(runs: Sequence[_Run], spec: AnySpec) -> Size | None:
    """Return the size of a data set that is not in the catalogue, as reported by the runs on it."""
    if not runs:
        return None
    trained = [run.started["train_examples"] for run in runs]
    # A run that took as many points as it asked for may have left some.
    asked = [run.started["test_examples"] >= run.spec.evaluation.examples for run in runs]
    tested = [run.started["test_examples"] for run in runs]
    known = getattr(spec, "train_examples", None) or max(trained)
    return Size(known, spec.evaluation.examples if all(asked) else max(tested))


def _scaled(run: _Run, passes: float, size: Size) -> float:
    """Return the seconds that a job of this number of passes would have taken on the machine of this run."""
    working = min(run.finished["seconds"], run.seconds)
    return float(run.seconds - working + working * passes / passes_of_run(run.spec, size).total)


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


def _seconds(started: datetime, ended: datetime) -> float:
    return (ended - started).total_seconds()
