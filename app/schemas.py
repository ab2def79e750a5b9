"""What the API answers with. What it accepts is `core.spec`; what a run reports is `core.events`.

No field has a default: an answer says everything, with null for what is not known yet.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from core.advice import Caution, FieldError
from core.catalog import Norm
from core.events import NormCount, Phase, Rate, Subject
from core.spec import Kind, Spec

Status = Literal["queued", "running", "pausing", "paused", "stopping", "cancelling", "succeeded", "failed", "cancelled"]
Action = Literal["cancel"]
Item = TypeVar("Item")


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_serialization_defaults_required=True)


def headers(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Describe the headers of an answer for the OpenAPI document."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in descriptions.items()}


class Listed(_Answer):
    """Something that has an id."""

    id: str
    """What other routes and specs call it by. The ids of jobs and checkpoints sort by time of creation."""


ListedItem = TypeVar("ListedItem", bound=Listed)


class Failure(_Answer):
    """Why a job failed."""

    code: str
    """Stable, for programs: from `core.errors`, or the service's own worker_lost, repeated_crash, storage_unavailable,
    disk_full, internal_error."""
    message: str
    """What happened."""
    hint: str
    """What to do."""
    field: str | None
    """The spec field or input it is about."""
    retryable: bool
    """Whether the same job can succeed when it is posted again unchanged."""


class Progress(_Answer):
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


class Result(_Answer):
    """The numbers of one evaluation; the whole of it is in the report."""

    clean: Rate
    """Accuracy without attack."""
    robust: dict[Norm, Rate]
    """Robust accuracy per norm."""
    union: Rate
    """Points that are right under every norm at once."""


class Results(_Answer):
    """The table of a job."""

    before: Result | None
    """The base model, where the job evaluates it."""
    after: Result | None
    """The model that the job delivers, or the one it was asked to evaluate."""


class Links(_Answer):
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
    spec: Spec
    """The resolved spec: everything that happens."""
    cautions: list[Caution]
    """What is valid and yet likely to disappoint."""
    metadata: dict[str, str]
    """The user's own pairs."""
    attempt: int
    """How often a worker has claimed it."""
    progress: Progress | None
    """How far the current attempt is."""
    failure: Failure | None
    """Why it failed, if it did."""
    results: Results | None
    """Its table, once there is a row."""
    checkpoint: str | None
    """Id of its latest checkpoint."""
    links: Links
    """Where the rest is."""


class DryRun(_Answer):
    """What a job would be, had it been posted."""

    valid: Literal[True]
    """An invalid spec is answered with 422."""
    spec: Spec
    """The resolved spec."""
    cautions: list[Caution]
    """What is valid and yet likely to disappoint."""


class Metric(_Answer):
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


class Metrics(_Answer):
    """The training curve of a job's current or last attempt."""

    object: Literal["metrics"]
    """What this is."""
    job_id: str
    """The job."""
    attempt: int
    """The attempt it belongs to."""
    data: list[Metric]
    """By step, thinned out evenly to `max_points`; the last step is always there."""


class Checkpoint(Listed):
    """Weights that a job has delivered, with their spec and report inside."""

    object: Literal["checkpoint"]
    """What this is."""
    job_id: str
    """The job that made it."""
    attempt: int
    """The attempt that made it."""
    created_at: datetime
    """When it was stored."""
    step: int
    """Training steps behind it."""
    epoch: float
    """Epochs behind it."""
    format: Literal["safetensors"]
    """Of the file."""
    size: int
    """Bytes."""
    sha256: str
    """Of the file."""
    download: str
    """Where the file is."""


class Model(Listed):
    """A base model that a job can name."""

    object: Literal["model"]
    """What this is."""
    source: Literal["shipped", "local"]
    """shipped with Temper, or a file in this instance's models folder."""
    description: str
    """What it is."""
    architecture: str | None
    """Its network; null for a local file, which only a run opens."""
    dataset: str | None
    """What it was trained on, where that is known."""
    norm: Norm | None
    """The norm it was made robust to, where that is known."""
    eps: float | None
    """The radius it was made robust at, where that is known."""
    size: int | None
    """Bytes of a local file."""


class Dataset(Listed):
    """A data set that a job can name."""

    object: Literal["dataset"]
    """What this is."""
    source: Literal["shipped", "local"]
    """known to Temper, or a folder or archive in this instance's datasets folder."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """Channels, height and width; null for a local one, which only a run opens."""
    classes: int | None
    """How many classes, where that is known."""
    train_examples: int | None
    """Images in the training part, where that is known."""
    test_examples: int | None
    """Images in the test part, where that is known."""
    eps: dict[Norm, float]
    """The radii a job gets that names none."""


class Method(Listed):
    """A training method that a job can name."""

    object: Literal["method"]
    """What this is."""
    description: str
    """What it is."""
    norms: list[Norm] | None
    """The norms it attacks when a job names none; null when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float]
    """What a job can set of it beside norms and steps, each with its default."""


class Architecture(Listed):
    """A network that a training job can name."""

    object: Literal["architecture"]
    """What this is."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """The only image shape it takes (channels, height, width); null when it takes more than one."""
    learning_rate: float
    """The highest learning rate of a run that names none."""


class Page(_Answer, Generic[Item]):
    """A part of a list. The next part is `?after=<last_id>`."""

    object: Literal["list"]
    """What this is."""
    data: list[Item]
    """The items."""
    has_more: bool
    """Whether there is a next part."""
    first_id: str | None
    """The first item's id (an event's seq)."""
    last_id: str | None
    """The last item's id (an event's seq): the cursor of the next part."""


def page(items: list[ListedItem], *, has_more: bool) -> Page[ListedItem]:
    """Wrap a part of a list, with the ids of its ends."""
    first, last = (items[0].id, items[-1].id) if items else (None, None)
    return Page(object="list", data=items, has_more=has_more, first_id=first, last_id=last)


class Index(_Answer):
    """Where to go from here."""

    service: str
    """What answers here."""
    docs: str
    """The routes, for people."""
    openapi: str
    """The routes, for programs."""
    ready: str
    """Whether the service can work."""
    version: str
    """Which Temper this is."""


class Health(_Answer):
    """Whether a probe is content."""

    status: Literal["ok"]
    """Anything else is a problem with status 503."""


class Version(_Answer):
    """What runs here."""

    version: str
    """Of Temper; "source" where it runs without being installed."""
    api: Literal["v1"]
    """Of the routes: each is also there under this prefix."""


class Problem(_Answer):
    """What went wrong with a request, as RFC 9457 has it."""

    type: str
    """A page on this server that explains the code."""
    title: str
    """The kind of problem, in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong here, and what to do."""
    instance: str
    """The path of the request."""
    code: str
    """Stable, for programs."""
    request_id: str
    """Also in the X-Request-Id header."""
    errors: list[FieldError]
    """One entry per field that is wrong."""


class ConflictProblem(Problem):
    """An action that the job's status does not allow."""

    current_status: Status
    """Where the job is."""
    allowed_actions: list[Action]
    """What may be asked of it now."""
