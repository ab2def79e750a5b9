"""The rows. Who may change them, and how, is in `app.jobs.lifecycle`."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.platform.database import Timestamp, now
from app.platform.ids import new_id
from app.schemas import FileStatus, Purpose, Scope, Status, UploadStatus
from core.schema.events import Phase


class Table(DeclarativeBase):
    """What all rows share: constraints have names, so that a migration can drop them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Timestamp, dict[str, Any]: JSON, list[dict[str, Any]]: JSON}  # noqa: RUF012


class Project(Table):
    """Whose things are whose: every job and key belongs to one."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("prj"))
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now())
    quotas: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Its own limits, where they differ from the instance's."""
    out_of_gpu_until: Mapped[datetime | None]
    """Its GPU time of this month is used up: no job of it is claimed before then."""


class ApiKey(Table):
    """A key to a project. The secret itself is stored nowhere."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("key"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), index=True)
    lookup: Mapped[str] = mapped_column(String(8), unique=True)
    """The part of the key that finds this row."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Hash of the whole key: it has 190 random bits, so a slow hash would add nothing."""
    name: Mapped[str] = mapped_column(default="")
    scopes: Mapped[list[Scope]] = mapped_column(JSON)
    created_by: Mapped[str | None]
    """The key that made it."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    revoked_at: Mapped[datetime | None]


class Job(Table):
    """A run that was asked for. `attempt` is the fencing token: a write under an earlier attempt changes nothing."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("job"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Hash of the resolved spec, by which a repeated request is known from a different one."""

    kind: Mapped[str]
    name: Mapped[str]
    base_model: Mapped[str | None]
    dataset: Mapped[str]
    priority: Mapped[int] = mapped_column()
    spec: Mapped[dict[str, Any]]
    warnings: Mapped[list[dict[str, Any]]]
    labels: Mapped[dict[str, Any]]
    """The user's metadata; SQLAlchemy keeps that name for itself."""

    status: Mapped[Status] = mapped_column(String, default="queued")
    phase: Mapped[Phase | None] = mapped_column(String)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    results: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    estimate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What it was expected to take when it was posted."""
    actual: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What it has taken, once it has ended."""
    report_key: Mapped[str | None]
    """Where the object store keeps the report."""
    report_sha256: Mapped[str | None] = mapped_column(String(64))
    checkpoint_id: Mapped[str | None]
    """The latest checkpoint."""

    version: Mapped[int] = mapped_column(default=1)
    """Grows with every change that a reader can see."""
    event_seq: Mapped[int] = mapped_column(default=0)
    """The last event's place."""
    attempt: Mapped[int] = mapped_column(default=0)
    """The number of claims so far: the latest attempt, whose number is its fencing token."""
    owner: Mapped[str | None]
    """The worker that claimed it last."""
    lease_until: Mapped[datetime | None]
    crashes: Mapped[int] = mapped_column(default=0)
    """How often its worker or its training process has vanished."""
    crashes_in_place: Mapped[int] = mapped_column(default=0)
    """How many crashes in a row came before anything new was saved."""
    saved_step: Mapped[int] = mapped_column(default=-1)
    """The step of the furthest state."""
    not_before: Mapped[datetime | None]
    """When a worker may claim it again after a crash."""
    asked_at: Mapped[datetime | None]
    """When somebody last asked for a pause, a stop or a cancel."""
    stop_requested: Mapped[bool] = mapped_column(default=False)
    """Whether somebody has asked for a stop, which outlives the worker that was told."""
    stopped_early: Mapped[bool] = mapped_column(default=False)
    """Whether the run has heeded that."""
    retry_of: Mapped[str | None]
    """The job where this one goes on; not a reference, for lineage outlives that job."""
    cloned_from: Mapped[str | None]
    """The job whose spec this one varies."""

    parent_id: Mapped[str | None]
    """The job that this one is a shard of, through which alone it is seen; not a reference, for SQLite cannot take such
    a column back."""
    shard: Mapped[int | None]
    """Which shard of it, from 1."""
    shard_count: Mapped[int] = mapped_column(default=0)
    """In how many shards this is evaluated, of a job and of its shards; 0 where it is in one piece."""
    shards_left: Mapped[int] = mapped_column(default=0)
    """How many of its shards have not succeeded. While there are any, no worker can have the job itself."""
    shards: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    """What it shows of its shards."""

    created_at: Mapped[datetime] = mapped_column(default=now())
    updated_at: Mapped[datetime] = mapped_column(default=now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint(project_id, idempotency_key),
        Index("ix_jobs_waiting", status, priority.desc(), "id"),
        Index("uq_jobs_retry_of", "retry_of", unique=True),
        Index("ix_jobs_of_project", project_id, "id"),
        Index("ix_jobs_of_project_by_status", project_id, status, priority.desc(), "id"),
        Index("ix_jobs_on_dataset", "dataset", status, "id"),
        Index("uq_jobs_shard", "parent_id", "shard", unique=True),
        Index("ix_jobs_in_shards", "finished_at", shards_left, "id"),
    )


HELD: frozenset[Status] = frozenset({"running", "pausing", "stopping", "cancelling"})
"""A worker has the job, under a lease; or workers have its shards."""
AT_WORK = Job.status.in_(HELD), Job.shards_left == 0
"""The condition under which a worker has the very job: each shard has its own, and what waits for shards has none."""


class Attempt(Table):
    """One claim of a job by one worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    """How it ended: lost, handed_back, or the status that the job got by it."""
    cause: Mapped[str | None]
    """Why it was lost or has failed, for people."""
    device: Mapped[str | None]
    """What the training process computes on."""
    resumed_step: Mapped[int | None]
    """The training step of the state that it went on from."""
    log_parts: Mapped[int] = mapped_column(default=0)
    """How many parts of its log the object store has."""
    log_size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Their bytes."""
    writes: Mapped[int] = mapped_column(default=0)
    """How many changes its worker has committed."""


class PastAttempt(Table):
    """What remains of an attempt whose job was deleted: what it has used, and what is counted of it."""

    __tablename__ = "past_attempts"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    kind: Mapped[str]
    dataset: Mapped[str]
    base_model: Mapped[str | None]
    gpus: Mapped[int]
    """0 on a CPU."""
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime]
    outcome: Mapped[str]
    """As of an attempt, or unknown where it had not ended."""
    waited: Mapped[float | None]
    """Of the first attempt, for how many seconds its job had waited."""

    __table_args__ = (Index("ix_past_attempts_of_project", project_id, "ended_at"),)


class Event(Table):
    """One entry of a job's history, numbered from 1 without gaps in the order of commits."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now())


class Metric(Table):
    """One training step of one attempt."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[float]
    """Epochs of training done."""
    loss: Mapped[float]
    learning_rate: Mapped[float]
    norm: Mapped[str | None]
    counts: Mapped[dict[str, Any]]

    __table_args__ = (ForeignKeyConstraint([job_id, attempt], [Attempt.job_id, Attempt.attempt], ondelete="CASCADE"),)


class Checkpoint(Table):
    """Weights in the object store. They exist because this row does: what has no row is garbage of a lost attempt."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ckpt"))
    job_id: Mapped[str] = mapped_column(index=True)
    attempt: Mapped[int] = mapped_column()
    step: Mapped[int]
    epoch: Mapped[float]
    """Epochs of training done."""
    key: Mapped[str]
    """Where the object store keeps the file."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now())

    __table_args__ = (ForeignKeyConstraint([job_id, attempt], [Attempt.job_id, Attempt.attempt], ondelete="CASCADE"),)


class State(Table):
    """A file in the object store that the job's next attempt can begin with: the newest two of each kind."""

    __tablename__ = "states"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    """state, best or verdicts."""
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """The attempt that wrote it."""
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[float]
    """Epochs of training done."""
    name: Mapped[str]
    """What the training process calls the file."""
    key: Mapped[str]
    """Where the object store keeps it."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))

    __table_args__ = (ForeignKeyConstraint([job_id, attempt], [Attempt.job_id, Attempt.attempt], ondelete="CASCADE"),)


class Webhook(Table):
    """Somebody who wants to be told: an address of a project's, and the secret that signs what is sent there."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("whk"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    url: Mapped[str] = mapped_column()
    events: Mapped[list[str]] = mapped_column(JSON)
    """The types of event that it is told of every job; a job that names its address may ask for more of itself."""
    description: Mapped[str]
    secret: Mapped[str]
    """Signs, so it is kept as it is."""
    previous_secret: Mapped[str | None]
    """Signs too, for a while after the secret was changed."""
    previous_until: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    """requested, or gone where the receiver said so."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    updated_at: Mapped[datetime] = mapped_column(default=now())

    __table_args__ = (UniqueConstraint(project_id, url),)


class Delivery(Table):
    """One event on its way to one webhook. Written in the transaction in which the event happened, sent later."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("dlv"))
    """Also the webhook-id that the receiver sees, the same in every attempt."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey(Webhook.id, ondelete="CASCADE"))
    type: Mapped[str]
    job_id: Mapped[str | None]
    payload: Mapped[str]
    """The very text that is signed and sent."""
    status: Mapped[str] = mapped_column(default="pending")
    """pending, succeeded or failed."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Since it was made or asked for again."""
    claim_number: Mapped[int] = mapped_column(default=0)
    """How often a sender has claimed it: the fencing token of the latest claim."""
    lease_until: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None] = mapped_column(default=now())
    response_status: Mapped[int | None]
    """Of the last attempt, like the two that follow."""
    duration: Mapped[float | None]
    """Seconds."""
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_deliveries_due", status, next_attempt_at),
        Index("ix_deliveries_of_webhook", webhook_id, "id"),
    )


class Upload(Table):
    """A file that a client sends in parts. How it gets from one status to the next is in `app.assets.uploads`."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("upl"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    filename: Mapped[str]
    """What it is called where it comes from; never part of a path here."""
    purpose: Mapped[Purpose] = mapped_column(String)
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes, as declared; reserved from the start."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Of the whole file, as declared."""
    part_size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of every part but the last."""
    status: Mapped[UploadStatus] = mapped_column(String, default="pending")
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    place: Mapped[str]
    """The end of its keys: the project and something that nobody can guess."""
    gathering: Mapped[str | None]
    """Under which name the object store gathers the parts; None where it comes in one piece, or has not begun."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    updated_at: Mapped[datetime] = mapped_column(default=now())
    expires_at: Mapped[datetime]
    """When a pending one is given up; later with every sign of life."""
    lease_until: Mapped[datetime | None]
    """Until when some process is at verifying it."""
    ended_at: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]
    """When the last of what it had left behind was removed."""

    __table_args__ = (Index("ix_uploads_of_project", project_id, "id"), Index("ix_uploads_by_status", status, "id"))


class Inspected(Table):
    """What data sets and models share: a file that a worker inspects, under a lease, before jobs can name it. How they
    get from one status to the next is in `app.assets.assets`."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    name: Mapped[str] = mapped_column(String(128))
    """What specs call it."""
    status: Mapped[FileStatus] = mapped_column(String, default="pending")
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    summary: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What lists show of the report."""
    upload_id: Mapped[str | None]
    """The upload that it came by, which holds the project's room as long as this row is there."""
    filename: Mapped[str]
    """What it is called where it comes from; never part of a path here."""
    key: Mapped[str]
    """Where the object store keeps the file: until it is ready what came, from then on what runs read."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    """Both of the object under `key`."""
    claim_number: Mapped[int] = mapped_column(default=0)
    """How often a worker has begun to inspect it: the fencing token of the latest inspection."""
    owner: Mapped[str | None]
    """The worker that began the last one."""
    lease_until: Mapped[datetime | None]
    crashes: Mapped[int] = mapped_column(default=0)
    """How often an inspection has crashed."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    finished_at: Mapped[datetime | None]
    """When its inspection ended."""


class Dataset(Inspected):
    """Images of a project's own."""

    __tablename__ = "datasets"

    __table_args__ = (UniqueConstraint("project_id", "name"), Index("ix_datasets_waiting", "status", "id"))


class Model(Inspected):
    """A base model of a project's own."""

    __tablename__ = "models"

    said: Mapped[dict[str, Any]]
    """What its owner says of it, as `core.schema.spec.ImportSpec` has it."""
    job_id: Mapped[str | None]
    """The job that it comes from; not a reference, for lineage outlives that job."""
    checkpoint_id: Mapped[str | None]
    """The checkpoint of that job."""

    __table_args__ = (UniqueConstraint("project_id", "name"), Index("ix_models_waiting", "status", "id"))


class Input(Table):
    """A file of the project's own that a job takes in, as it was when the job was posted."""

    __tablename__ = "inputs"

    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    field: Mapped[str] = mapped_column(primary_key=True)
    """The field of the spec that names it."""
    source_id: Mapped[str] = mapped_column(index=True)
    """The data set, model or checkpoint; not a reference, for lineage outlives them."""
    sha256: Mapped[str] = mapped_column(String(64))
    made_by_job: Mapped[str | None]
    made_by_checkpoint: Mapped[str | None]
    """Where a model or checkpoint comes from."""
