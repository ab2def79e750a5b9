"""Jobs: status, progress, results and training curve."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from app.schemas.answer import Answer, Listed
from app.schemas.estimates import Actual, Estimate
from app.schemas.status import Action, Status
from app.schemas.webhooks import WebhookWithSecret
from core.schema.catalog import Kind, Norm
from core.schema.progress import Flag, NormCount, Phase, Rate, Subject, WarningRecord

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

    from core.schema.report import Report, Reports, UnseenReport


class _DocumentedAsRequest:
    """Gives JSON that was validated when the job was posted the schema of a request, without validating it again."""

    @staticmethod
    def __get_pydantic_json_schema__(_: Any, handler: "GetJsonSchemaHandler") -> "JsonSchemaValue":
        from pydantic import TypeAdapter

        from app.schemas.job_request import JobRequest

        return handler(TypeAdapter(JobRequest).core_schema)


ResolvedSpec = Annotated[dict[str, Any], _DocumentedAsRequest]
"""The request for a job with all defaults filled in, as JSON."""


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
    """The spec field or input that caused it."""
    retryable: bool
    """Whether the same job can succeed if it is posted again unchanged."""


class Waiting(Answer):
    """Why a queued job cannot start: no living worker could take it."""

    code: Literal["no_worker", "no_suitable_worker"]
    """no_worker: none is alive. no_suitable_worker: none of them has what the job requires."""
    message: str
    """What is missing, and what to do."""


class Progress(Answer):
    """Progress of the current attempt. Training fields keep their last value during the evaluation."""

    step: int
    """Training steps done."""
    total_steps: int
    """Training steps of the whole run."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float | None
    """Loss of the last step; null if it is not finite."""
    learning_rate: float | None
    """Learning rate of the last step."""
    norm: Norm | None
    """The norm attacked in the last step; null if none was, or several were."""
    counts: dict[Norm, NormCount]
    """Per attacked norm, running counts of robust training images."""
    subject: Subject | None
    """The model under evaluation, during an evaluation."""
    attack: str | None
    """The last attack that finished in this evaluation."""
    threat: str | None
    """The row of that attack: a norm, or a threat with its budget."""
    attacks_done: int
    """Attacks finished in this evaluation."""
    attacks_total: int
    """Attacks of this evaluation; 0 until the first one has finished."""
    fraction: float | None
    """Fraction of the current phase that is done: of the steps in training, of the attacks in evaluation."""
    seconds_remaining: float | None
    """Estimated rest of the training phase, from its mean pace."""


class UnseenResult(Answer):
    """Accuracies under threats that no training prepares for; the report has them per point and per corruption."""

    common: float | None
    """Mean under the 15 common corruptions and their severities; null where not all were evaluated."""
    accuracy: dict[str, Rate]
    """Per attack and budget, such as "l0 9"."""
    average: float | None
    """Mean under the attacks, each at its largest budget; null without attacks."""
    union: Rate | None
    """Share of points that are right under every attack; null without attacks."""

    @classmethod
    def of(cls, unseen: "UnseenReport") -> Self:
        """Take the accuracies of this part of a report."""
        return cls(
            common=unseen.common.mean if unseen.common else None,
            accuracy={row.id: row.accuracy for row in unseen.attack_rows},
            average=unseen.average,
            union=unseen.union,
        )


class Result(Answer):
    """Accuracies of one evaluation; the report has the details."""

    clean: Rate
    """Accuracy without attack."""
    robust: dict[str, Rate]
    """Robust accuracy per threat id, of which a norm is one."""
    union: Rate
    """Share of points that are robust under every norm."""
    unseen: UnseenResult | None = None
    """Accuracies under threats that no training prepares for; null where none was asked for."""
    flags: tuple[Flag, ...] = ()
    """Reasons to doubt these numbers; empty is good."""

    @classmethod
    def of(cls, report: "Report") -> Self:
        """Take the accuracies and the flags of a report."""
        unseen = report.unseen and UnseenResult.of(report.unseen)
        return cls(clean=report.clean, robust=report.robust, union=report.union, unseen=unseen, flags=report.flags)


class Results(Answer):
    """Accuracies before and after a job."""

    before: Result | None
    """The base model, if the job evaluates it."""
    after: Result | None
    """The model that the job delivers, or the model of an evaluation job."""

    @classmethod
    def of(cls, reports: "Reports") -> Self:
        """Take the accuracies of a run's reports."""
        before, after = (report and Result.of(report) for report in (reports.before, reports.after))
        return cls(before=before, after=after)


class ShardState(Answer):
    """One shard of an evaluation that several workers share."""

    number: int
    """Number of the shard, from 1."""
    job: str
    """Id of the shard: `GET /jobs/{id}` and the routes below it show its events, attempts and logs. It has no
    actions."""
    status: Status
    """Status of the shard, one of those of a job."""
    worker: str | None
    """The worker that has it, or had it last."""
    attempt: int
    """Number of times that a worker has claimed it."""
    crashes: int
    """Number of times that its worker or its process has vanished."""


class ShardOf(Answer):
    """The evaluation that a shard belongs to."""

    job: str
    """Id of the evaluation job."""
    number: int
    """Number of the shard, from 1."""
    count: int
    """Number of shards."""


class Links(Answer):
    """Addresses of the parts of a job."""

    self: str
    """The job."""
    events: str
    """Its events."""
    metrics: str
    """Its training curve."""
    checkpoints: str
    """Its checkpoints."""
    report: str
    """Its evaluations, point by point."""


class Job(Listed):
    """A job: a run that was posted, its status and its results."""

    object: Literal["job"]
    """Type of the object."""
    name: str
    """A label for people."""
    kind: Kind
    """What the run does."""
    status: Status
    """Status of the job."""
    waiting: Waiting | None
    """Why no worker can take the job while it is queued; null where one could, and in every other status."""
    phase: Phase | None
    """What the run does now; null if it is not running."""
    is_terminal: bool
    """Whether the status is final."""
    allowed_actions: list[Action]
    """Actions that the status allows: each is `POST /jobs/{id}/<action>`."""
    created_at: datetime
    """When it was posted."""
    updated_at: datetime
    """When it last changed."""
    started_at: datetime | None
    """When its current or last attempt started."""
    finished_at: datetime | None
    """When it ended."""
    spec: ResolvedSpec
    """The resolved spec: every setting of the run."""
    warnings: list[WarningRecord]
    """Reasons to doubt the job: those that its spec gives, and those that its run has found."""
    estimate: Estimate | None
    """Its expected cost when it was posted; null for a shard."""
    actual: Actual | None
    """Its actual cost, after it has ended."""
    metadata: dict[str, str]
    """The user's own keys and values."""
    attempt: int
    """Number of times that a worker has claimed it."""
    crashes: int
    """Number of times that its worker or its training process has vanished."""
    not_before: datetime | None
    """After a crash: the earliest time at which a worker may claim it again."""
    stopped_early: bool
    """Whether the run was stopped before its last step; `progress.step` has the step."""
    retry_of: str | None
    """The failed or cancelled job that this one resumes from."""
    cloned_from: str | None
    """The job whose spec this one is based on."""
    shards: list[ShardState] | None
    """The shards of a large evaluation, which several workers share; a worker then merges their results. The job is
    running meanwhile."""
    shard_of: ShardOf | None
    """For a shard: the job it belongs to. Lists leave shards out; only `shards` of that job refers to them."""
    progress: Progress | None
    """Progress of the current attempt, or of the shards."""
    failure: Failure | None
    """Why it failed; null if it did not."""
    results: Results | None
    """Its accuracies; null until the first evaluation has finished."""
    checkpoint: str | None
    """Id of its latest checkpoint."""
    links: Links
    """Addresses of its parts."""


class PostedJob(Job):
    """A job that was just created."""

    webhook: WebhookWithSecret | None
    """The webhook that was made for the address in the spec, with its secret, which no other answer contains; null if
    the spec names no address, or one that the project already has."""


class DryRun(Answer):
    """The job that a request would create."""

    valid: Literal[True]
    """Always true: an invalid spec is answered with 422."""
    spec: ResolvedSpec
    """The resolved spec."""
    warnings: list[WarningRecord]
    """Warnings about a spec that is valid and yet likely to disappoint."""
    estimate: Estimate
    """Its expected cost."""
    shards: int
    """Number of shards that it would be divided into; 0 if it would not be divided."""


class Metric(Answer):
    """One training step."""

    step: int
    """Number of the step, from 1."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float | None
    """Mean loss of the batch; null if it is not finite."""
    learning_rate: float
    """Learning rate of this step."""
    norm: Norm | None
    """The norm that was attacked; null if none was, or several were."""
    counts: dict[Norm, NormCount]
    """Per attacked norm, running counts of robust training images."""


class Metrics(Answer):
    """The training curve of a job's current or last attempt."""

    object: Literal["metrics"]
    """Type of the object."""
    job_id: str
    """Id of the job."""
    attempt: int
    """Number of the attempt."""
    data: list[Metric]
    """The steps in order, thinned out evenly to `max_points`; the last step is always included."""
