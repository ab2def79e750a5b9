"""A job, and what it shows of itself."""

from datetime import datetime
from typing import Literal, Self

from app.schemas.answer import Answer, Listed
from app.schemas.estimates import Actual, Estimate
from app.schemas.job_request import JobRequest
from app.schemas.webhooks import WebhookWithSecret
from core.schema.catalog import Norm
from core.schema.events import NormCount, Phase, Subject
from core.schema.report import Rate, Report, Reports
from core.schema.spec import Kind
from core.schema.spec_warnings import SpecWarning

Status = Literal["queued", "running", "pausing", "paused", "stopping", "cancelling", "succeeded", "failed", "cancelled"]
Action = Literal["pause", "resume", "stop", "cancel", "retry"]


class Failure(Answer):
    """Why a job failed."""

    code: str
    """Stable, for programs: from `core.schema.errors`, or the service's own worker_lost, repeated_crash,
    host_out_of_memory, storage_unavailable, disk_full, internal_error."""
    message: str
    """What happened."""
    hint: str
    """What to do."""
    field: str | None
    """The spec field or input it is about."""
    retryable: bool
    """Whether the same job can succeed when it is posted again unchanged."""


class Progress(Answer):
    """How far the current attempt is. Training fields keep their last value while the result is evaluated."""

    step: int
    """Training steps done."""
    total_steps: int
    """Training steps of the whole run."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float | None
    """Loss of the last step."""
    learning_rate: float | None
    """Learning rate of the last step."""
    norm: Norm | None
    """The norm attacked in the last step; null where none was, or several were."""
    counts: dict[Norm, NormCount]
    """Per attacked norm, how the training images fared."""
    subject: Subject | None
    """The model under evaluation, during an evaluation."""
    attack: str | None
    """The attack that was done last in this evaluation."""
    attack_norm: Norm | None
    """The norm of that attack."""
    attacks_done: int
    """Attacks done in this evaluation."""
    attacks_total: int
    """Attacks of this evaluation; 0 while none is done."""
    fraction: float | None
    """Share of the current phase that is done: of the steps in training, of the attacks in evaluation."""
    seconds_remaining: float | None
    """Estimate for the rest of the training phase, from its mean pace."""


class Result(Answer):
    """The numbers of one evaluation; the whole of it is in the report."""

    clean: Rate
    """Accuracy without attack."""
    robust: dict[str, Rate]
    """Robust accuracy per threat id, of which a norm is one."""
    union: Rate
    """Points that are right under every norm at once."""

    @classmethod
    def of(cls, report: Report) -> Self:
        """Take the numbers of a report."""
        return cls(clean=report.clean, robust=report.robust, union=report.union)


class Results(Answer):
    """The table of a job."""

    before: Result | None
    """The base model, where the job evaluates it."""
    after: Result | None
    """The model that the job delivers, or the one it was asked to evaluate."""

    @classmethod
    def of(cls, reports: Reports) -> Self:
        """Take the numbers of a run's reports."""
        before, after = (report and Result.of(report) for report in (reports.before, reports.after))
        return cls(before=before, after=after)


class ShardState(Answer):
    """One part of an evaluation that several workers share."""

    number: int
    """From 1."""
    job: str
    """Its id: `GET /jobs/{id}` and what is below it show events, attempts and logs. Nothing can be asked of it."""
    status: Status
    """Where it is in its life, which is that of a job."""
    worker: str | None
    """Who has it, or had it last."""
    attempt: int
    """How often a worker has claimed it."""
    crashes: int
    """How often its worker or its process has vanished."""


class ShardOf(Answer):
    """Which part of an evaluation this is."""

    job: str
    """The whole."""
    number: int
    """From 1."""
    count: int
    """How many parts there are."""


class Links(Answer):
    """Where the rest of a job is."""

    self: str
    """The job."""
    events: str
    """Its history."""
    metrics: str
    """Its training curve."""
    checkpoints: str
    """Its checkpoints."""
    report: str
    """Its evaluations, point by point."""


class Job(Listed):
    """A run that was asked for, and how it fares."""

    object: Literal["job"]
    """What this is."""
    name: str
    """A label for people."""
    kind: Kind
    """What the run does."""
    status: Status
    """Where the job is in its life."""
    phase: Phase | None
    """What the run does now, while it runs."""
    is_terminal: bool
    """Whether the status can no longer change."""
    allowed_actions: list[Action]
    """What may be asked of the job now: each is `POST /jobs/{id}/<action>`."""
    created_at: datetime
    """When it was posted."""
    updated_at: datetime
    """When it last changed."""
    started_at: datetime | None
    """When its current or last attempt began."""
    finished_at: datetime | None
    """When it came to its end."""
    spec: JobRequest
    """The resolved spec: everything that happens."""
    warnings: list[SpecWarning]
    """What is valid and yet likely to disappoint."""
    estimate: Estimate | None
    """What it was expected to take when it was posted; null for a shard."""
    actual: Actual | None
    """What it has taken, once it has ended."""
    metadata: dict[str, str]
    """The user's own pairs."""
    attempt: int
    """How often a worker has claimed it."""
    crashes: int
    """How often its worker or its training process has vanished."""
    not_before: datetime | None
    """After a crash: when a worker may claim it again."""
    stopped_early: bool
    """Whether the run was stopped before its last step; `progress.step` says where."""
    retry_of: str | None
    """The failed or cancelled job from whose last state this one goes on."""
    cloned_from: str | None
    """The job whose spec this one varies."""
    shards: list[ShardState] | None
    """The parts that workers share, where an evaluation is large; a worker merges what they find. While they are at it,
    the job is running."""
    shard_of: ShardOf | None
    """What this is a part of, for a shard; only `shards` leads here."""
    progress: Progress | None
    """How far the current attempt is, or its shards are."""
    failure: Failure | None
    """Why it failed, if it did."""
    results: Results | None
    """Its table, once there is a row."""
    checkpoint: str | None
    """Id of its latest checkpoint."""
    links: Links
    """Where the rest is."""


class PostedJob(Job):
    """A job as it was just made."""

    webhook: WebhookWithSecret | None
    """The webhook that was made for the address which the spec names, with the secret that no other answer shows; null
    where the spec names none, or one that the project has already."""


class DryRun(Answer):
    """What a job would be, had it been posted."""

    valid: Literal[True]
    """An invalid spec is answered with 422."""
    spec: JobRequest
    """The resolved spec."""
    warnings: list[SpecWarning]
    """What is valid and yet likely to disappoint."""
    estimate: Estimate
    """What it would take."""
    shards: int
    """Parts that workers would share; 0 for one piece."""


class Metric(Answer):
    """One training step."""

    step: int
    """Steps done, this one included."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float
    """Mean loss of the batch."""
    learning_rate: float
    """Learning rate of this step."""
    norm: Norm | None
    """The norm that was attacked; null where none was, or several were."""
    counts: dict[Norm, NormCount]
    """Per attacked norm, the running counts."""


class Metrics(Answer):
    """The training curve of a job's current or last attempt."""

    object: Literal["metrics"]
    """What this is."""
    job_id: str
    """The job."""
    attempt: int
    """The attempt it belongs to."""
    data: list[Metric]
    """By step, thinned out evenly to `max_points`; the last step is always there."""
