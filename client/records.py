"""What the service answers, typed. Unknown fields are ignored and unknown states kept as they come, so that an older
client can talk to a newer service."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.errors import Unreadable
from core.schema.catalog import Norm
from core.schema.events import NormCount, Subject
from core.schema.report import Rate
from core.schema.spec_warnings import SpecWarning

Answer = TypeVar("Answer", bound=BaseModel)
Item = TypeVar("Item", bound=BaseModel)


class Record(BaseModel):
    """Anything the service answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Progress(Record):
    """How far a job's current attempt is."""

    step: int
    """Training steps done."""
    total_steps: int
    """Training steps of the whole run."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float | None
    """Loss of the last step; None where it is not a finite number."""
    learning_rate: float | None
    """Learning rate of the last step."""
    norm: Norm | None
    """The norm attacked in the last step; None where none was, or several were."""
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
    """Share of the current phase that is done."""
    seconds_remaining: float | None
    """Estimate for the rest of the training phase."""


class Failure(Record):
    """Why a job failed."""

    code: str
    """Stable, for programs."""
    message: str
    """What happened."""
    hint: str
    """What to do."""
    field: str | None
    """The spec field or input it is about."""
    retryable: bool
    """Whether the same job can succeed when it is posted again unchanged."""


class Result(Record):
    """The numbers of one evaluation."""

    clean: Rate
    """Accuracy without attack."""
    robust: dict[str, Rate]
    """Robust accuracy per threat id, of which a norm is one."""
    union: Rate
    """Points that are right under every norm at once."""


class Results(Record):
    """The table of a job."""

    before: Result | None
    """The base model, where the job evaluates it."""
    after: Result | None
    """The model that the job delivers, or the one it was asked to evaluate."""


class Duration(Record):
    """How long, in seconds."""

    p50: float
    """Half of such jobs take no longer."""
    p90: float
    """Nine in ten take no longer."""


class Estimate(Record):
    """What a job was expected to take."""

    seconds: Duration | None
    """Time at work, without waiting; None where nothing is known."""
    peak_memory_bytes: int | None
    """The most memory, of the GPU or, on a CPU, of the machine; None where nothing is known."""
    storage_bytes: int | None
    """What its checkpoint and its log take; None where nothing is known."""
    basis: str
    """history, passes or none."""
    runs: int
    """How many finished jobs it stands on."""
    unavailable_reason: str | None
    """Why nothing is known."""


class Actual(Record):
    """What a job has taken in the end."""

    seconds: float
    """Time at work of all its attempts."""
    peak_memory_bytes: int | None
    """The most memory; None where it did not come to its end."""
    storage_bytes: int
    """What its checkpoints and logs take."""


class Webhook(Record):
    """An address that is told how jobs fare."""

    id: str
    """What other commands call it by."""
    url: str
    """Where messages are posted."""
    events: tuple[str, ...]
    """What it is told of every job of the project."""
    description: str
    """For people."""
    disabled: bool
    """Whether nothing is sent there now."""
    disabled_reason: str | None
    """requested by a user, or gone: the receiver answered 410."""
    created_at: datetime
    """When it was made."""
    previous_secret_until: datetime | None
    """Until then, messages are signed with the secret before this one, too."""


class NewWebhook(Webhook):
    """A webhook with the secret that signs its messages."""

    secret: str = Field(repr=False)
    """Shown only this once."""


class Delivery(Record):
    """One message to one webhook."""

    id: str
    """The `webhook-id` of the message, in every attempt."""
    type: str
    """What has happened: job.<status> or webhook.test."""
    job_id: str | None
    """The job that it is about."""
    status: str
    """pending, succeeded or failed."""
    attempts: int
    """Attempts made, since it was made or last asked for again."""
    response_status: int | None
    """What the last attempt was answered with, if it was."""
    error: str | None
    """What was wrong with the last attempt."""
    next_attempt_at: datetime | None
    """When the next attempt is due."""
    created_at: datetime
    """When it happened."""
    finished_at: datetime | None
    """When it had succeeded or failed."""


class Shard(Record):
    """A part of a large evaluation, which any worker may make."""

    number: int
    """From 1."""
    job: str
    """Its own id, for events, attempts and logs."""
    status: str
    """Where it is in its life, which is that of a job."""
    worker: str | None
    """Who has it, or had it last."""


class Job(Record):
    """A run that was asked for, and how it fares."""

    id: str
    """Sorts by time of creation."""
    name: str
    """A label for people."""
    kind: str
    """finetune, train or evaluate."""
    status: str
    """queued, running, pausing, paused, stopping, cancelling, succeeded, failed, cancelled, or a newer one."""
    phase: str | None
    """What the run does now: preparing, training, evaluating, publishing."""
    is_terminal: bool
    """Whether the status can no longer change."""
    allowed_actions: tuple[str, ...]
    """What may be asked of the job now."""
    created_at: datetime
    """When it was posted."""
    updated_at: datetime
    """When it last changed."""
    started_at: datetime | None
    """When its current or last attempt began."""
    finished_at: datetime | None
    """When it came to its end."""
    spec: dict[str, Any]
    """The resolved spec: everything that happens."""
    warnings: tuple[SpecWarning, ...]
    """What is valid and yet likely to disappoint."""
    estimate: Estimate | None = None
    """What it was expected to take; None from an older service."""
    actual: Actual | None = None
    """What it has taken, once it has ended."""
    metadata: dict[str, str]
    """The user's own pairs."""
    attempt: int
    """How often a worker has claimed it."""
    stopped_early: bool = False
    """Whether the run was stopped before its last step."""
    retry_of: str | None = None
    """The failed or cancelled job from whose last state this one goes on."""
    cloned_from: str | None = None
    """The job whose spec this one varies."""
    shards: tuple[Shard, ...] | None = None
    """The parts that workers share, where an evaluation is large."""
    progress: Progress | None
    """How far the current attempt is, or its shards are."""
    failure: Failure | None
    """Why it failed, if it did."""
    results: Results | None
    """Its table, once there is a row."""
    checkpoint: str | None
    """Id of its latest checkpoint."""
    webhook: NewWebhook | None = None
    """In the answer to submit, retry and clone alone: the webhook that was made for the address which the spec names,
    with its secret; None where there was one already."""


class Attempt(Record):
    """One claim of a job by one worker."""

    number: int
    """From 1."""
    worker: str
    """Who had it: machine and process."""
    device: str | None
    """What the training process computed on."""
    started_at: datetime
    """When the worker claimed the job."""
    ended_at: datetime | None
    """When it let go of it, or was no longer heard of."""
    outcome: str | None
    """succeeded, failed, cancelled, paused, handed_back or lost; None while it runs."""
    cause: str | None
    """Why it was lost or has failed."""
    resumed_step: int | None
    """The training step of the state that it went on from, of an evaluation how often it had kept what it had
    found; None where it began anew."""


class DryRun(Record):
    """What a job would be, had it been posted."""

    spec: dict[str, Any]
    """The resolved spec."""
    warnings: tuple[SpecWarning, ...]
    """What is valid and yet likely to disappoint."""
    estimate: Estimate | None = None
    """What it would take; None from an older service."""


class Metric(Record):
    """One training step."""

    step: int
    """Steps done, this one included."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float | None
    """Mean loss of the batch; None where it is not a finite number."""
    learning_rate: float
    """Learning rate of this step."""
    norm: Norm | None
    """The norm that was attacked; None where none was, or several were."""
    counts: dict[Norm, NormCount]
    """Per attacked norm, the running counts."""


class Metrics(Record):
    """The training curve of a job's current or last attempt."""

    attempt: int
    """The attempt it belongs to."""
    data: tuple[Metric, ...]
    """By step."""


class Checkpoint(Record):
    """Weights that a job has delivered, with their spec and report inside."""

    id: str
    """Sorts by time of creation."""
    job_id: str
    """The job that made it."""
    created_at: datetime
    """When it was stored."""
    step: int
    """Training steps behind it."""
    epoch: float
    """Epochs behind it."""
    size: int
    """Bytes."""
    sha256: str
    """Of the file."""


class MadeBy(Record):
    """The job that a model comes from."""

    job: str
    """The job."""
    checkpoint: str
    """The checkpoint of it."""


class FileFailure(Record):
    """Why a data set or model was refused."""

    code: str
    """Stable, for programs."""
    message: str
    """What is wrong with it."""
    hint: str
    """What to do."""


class Model(Record):
    """A base model that a job can name."""

    id: str
    """What specs call it, as well as by its name."""
    name: str
    """What specs call it."""
    source: str
    """shipped, local or own."""
    status: str
    """pending, inspecting, ready or refused."""
    description: str
    """What it is."""
    architecture: str | None
    """Its network, where that is known."""
    dataset: str | None
    """What it was trained on, where that is known."""
    norm: Norm | None
    """The norm it was made robust to, where that is known."""
    eps: float | None
    """The radius it was made robust at, where that is known."""
    shape: tuple[int, ...] | None
    """Channels, height and width of its images, where that is known."""
    classes: int | None
    """How many classes it tells apart, where that is known."""
    parameters: int | None
    """How many its network has, of your own."""
    size: int | None
    """Bytes of its file."""
    sha256: str | None
    """Of its file."""
    made_by: MadeBy | None
    """The job that it comes from."""
    warnings: tuple[str, ...]
    """Codes of what its inspection found doubtful."""
    failure: FileFailure | None
    """Why it was refused, if it was."""


class Dataset(Record):
    """A data set that a job can name."""

    id: str
    """What specs call it, as well as by its name."""
    name: str
    """What specs call it."""
    source: str
    """shipped, local or own."""
    status: str
    """pending, inspecting, ready or refused."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """Channels, height and width, where that is known."""
    classes: int | None
    """How many classes, where that is known."""
    eps: dict[Norm, float]
    """The radii of a job that names none."""
    train_examples: int | None
    """Images in the training part, where that is known."""
    test_examples: int | None
    """Images in the test part, where that is known."""
    size: int | None
    """Bytes of its file, of your own."""
    sha256: str | None
    """Of its file, of your own."""
    refused: int | None
    """Images that no run sees, of your own."""
    overlap: int | None
    """Test images that are in the training part, too, of your own."""
    failure: FileFailure | None
    """Why it was refused, if it was."""


class Method(Record):
    """A training method that a job can name."""

    id: str
    """The name."""
    description: str
    """What it is."""
    norms: tuple[Norm, ...] | None
    """The norms it attacks when a job names none; None when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float]
    """What a job can set of it beside norms and steps, each with its default."""


class ApiKey(Record):
    """A key to a project, without its secret."""

    id: str
    """What revoke takes."""
    name: str
    """A label for people."""
    project_id: str
    """The project that it opens."""
    prefix: str
    """How the key begins."""
    scopes: tuple[str, ...]
    """What it may do."""
    created_at: datetime
    """When it was made."""
    expires_at: datetime | None
    """From when on it is refused; None for never."""
    last_used_at: datetime | None
    """When it was last used, to the minute."""
    revoked_at: datetime | None
    """Since when it is refused for good."""


class NewApiKey(ApiKey):
    """A key that was just made."""

    secret: str = Field(repr=False)
    """The key itself, shown only this once."""


class Project(Record):
    """Whose things are whose."""

    id: str
    """What other commands call it by."""
    name: str
    """A label for people."""
    created_at: datetime
    """When it was made."""


class QuotaState(Record):
    """One quota of a project."""

    quota: str
    """Which one."""
    limit: int | None
    """The most there may be; None for no limit."""
    used: float | None
    """What there is now; None where that is not one number."""


class UsageGroup(Record):
    """What one group of attempts has used."""

    group: str
    """The day, month, kind, data set or base model."""
    jobs: int
    """Jobs that were at work in it."""
    worker_seconds: float
    """Time that workers spent on them."""
    gpu_seconds: float
    """Time that GPUs were taken, times their number."""


class Usage(Record):
    """What a project has used between two moments."""

    since: datetime
    """From when on."""
    until: datetime
    """Until when."""
    jobs: dict[str, int]
    """Jobs posted in this time that are still there, by their status now."""
    worker_seconds: float
    """Time that workers spent on jobs in this time."""
    gpu_seconds: float
    """Time that GPUs were taken in this time, times their number."""
    stored_bytes: int
    """Bytes that are stored for the project now."""
    groups: tuple[UsageGroup, ...]
    """The same, divided as was asked."""


class Me(Record):
    """Who asks."""

    project: Project
    """The project that the key opens."""
    key: ApiKey
    """The key in use."""
    scopes: tuple[str, ...]
    """What it may do."""
    quotas: tuple[QuotaState, ...] = ()
    """What the project may have, and has; none from an older service."""


class Version(Record):
    """What runs there."""

    version: str
    """Of Temper."""
    api: str
    """Of the routes."""


class UploadFailure(Record):
    """Why the service has given an upload up."""

    code: str
    """For programs."""
    message: str
    """What was wrong."""
    hint: str
    """What to do."""


class Upload(Record):
    """A file that is sent in parts."""

    id: str
    """Sorts by time of creation."""
    filename: str
    """What it is called."""
    purpose: str
    """What it is to become."""
    bytes: int
    """How large it is."""
    sha256: str
    """Of the whole file."""
    status: str
    """pending, verifying, completed, aborted or expired."""
    failure: UploadFailure | None
    """Why the service has aborted it."""
    part_bytes: int
    """Bytes of every part but the last."""
    parts: int
    """How many parts it has."""
    received: tuple[int, ...] | None
    """Numbers of the parts that are there while it is pending."""


class UploadRequest(Record):
    """How to send a part."""

    number: int
    """Of the part."""
    url: str
    """Where to; this service where it begins with a slash."""
    headers: dict[str, str]
    """What to send with it."""


class UploadRequests(Record):
    """How to send some parts."""

    data: tuple[UploadRequest, ...]
    """In the order in which they were asked for."""


class Page(Record, Generic[Item]):
    """A part of a list."""

    data: tuple[Item, ...]
    """The items."""
    has_more: bool
    """Whether there is a next part."""
    last_id: str | None
    """The cursor of the next part."""


def read(kind: type[Answer], body: str | bytes) -> Answer:
    """Read a JSON answer, whatever it holds beyond what `kind` knows, at any depth. Raises Unreadable."""
    try:
        return kind.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        raise Unreadable(
            f"the answer cannot be read as Temper's {kind.__name__}: does TEMPER_URL name a Temper service?"
        ) from error
