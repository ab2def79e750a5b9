"""The rows of the database. The modules that own them change them, such as `app.jobs.moves` for jobs.

All rows are in one file: foreign keys tie them to each other, and the schema can be read in one place.
"""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.platform.database import Timestamp, now
from app.platform.ids import new_id
from app.platform.leases import Leased
from app.platform.settings import ResourceClass
from app.schemas import (
    AssetStatus,
    DeliveryStatus,
    DeliveryType,
    DisabledReason,
    Outcome,
    Purpose,
    Scope,
    Status,
    UploadStatus,
)
from core.schema.catalog import Kind
from core.schema.progress import Phase

StateKind = Literal["state", "best", "verdicts"]
TaskKind = Literal["inspect_dataset", "inspect_model", "verify_upload"]
TaskStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


def where(condition: str) -> dict[str, Any]:
    """The options of an index that has only the rows under a condition."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class Table(DeclarativeBase):
    """What all tables share. Constraints have names, so that a migration can drop them."""

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
    """The owner of jobs, files, webhooks and keys."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("prj"))
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now())
    quotas: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Its own limits, where they differ from those of the instance."""
    out_of_gpu_until: Mapped[datetime | None]
    """Set when its GPU time of this month is used up: none of its jobs is claimed before then."""
    created_by: Mapped[str | None]
    """The key that created it."""
    latest_id: Mapped[str] = mapped_column(String(26), default="", server_default="")
    """The latest number that `app.projects.ids` has given to a row of the project."""
    deleted_at: Mapped[datetime | None]
    """When its deletion was requested. Nothing finds it from then on; maintenance deletes its rows, and it last."""


class ApiKey(Table):
    """A key to a project. The key itself is not stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("key"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    lookup: Mapped[str] = mapped_column(String(8), unique=True)
    """The part of the key that finds this row."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Hash of the whole key: it has 190 random bits, so a slow hash would add nothing."""
    name: Mapped[str] = mapped_column(default="")
    scopes: Mapped[list[Scope]] = mapped_column(JSON)
    created_by: Mapped[str | None]
    """The key that created it."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[str | None]

    __table_args__ = (
        Index("ix_api_keys_of_project", "project_id", "id"),
        Index("ix_api_keys_valid", "project_id", "expires_at", **where("revoked_at IS NULL")),
        Index("ix_api_keys_made_by", "created_by", "id"),
        Index("ix_api_keys_revoked", "revoked_at"),
        Index("ix_api_keys_expired", "expires_at"),
    )


CLAIMED: frozenset[Status] = frozenset({"running", "pausing", "stopping", "cancelling"})
"""The statuses of a job that a worker holds under a lease, or whose shards workers hold."""
UNFINISHED: frozenset[Status] = CLAIMED | {"queued", "paused"}
"""The statuses of a job that has not ended."""


class Job(Leased, Table):
    """A run that was posted. A worker runs it under a lease."""

    __tablename__ = "jobs"
    HELD = CLAIMED

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("job"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Hash of the resolved spec, which tells a repeated request from a different one."""

    kind: Mapped[Kind] = mapped_column(String)
    name: Mapped[str]
    base_model: Mapped[str | None]
    dataset: Mapped[str]
    priority: Mapped[int] = mapped_column()
    requires: Mapped[str] = mapped_column(default="{}", server_default="{}")
    """What it requires of a worker: the key of `app.jobs.requirements.Requirements`."""
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
    """The report's key in the object store."""
    report_sha256: Mapped[str | None] = mapped_column(String(64))
    checkpoint_id: Mapped[str | None]
    """The latest checkpoint."""

    version: Mapped[int] = mapped_column(default=1)
    """Grows with every change that a reader can see."""
    event_seq: Mapped[int] = mapped_column(default=0)
    """The number of the latest event."""
    crashes: Mapped[int] = mapped_column(default=0)
    """How often its worker or its training process has crashed."""
    crashes_in_place: Mapped[int] = mapped_column(default=0)
    """How many crashes in a row came before anything new was saved."""
    saved_step: Mapped[int] = mapped_column(default=-1)
    """The step of the furthest state."""
    not_before: Mapped[datetime | None]
    """When a worker may claim it again after a crash."""
    asked_at: Mapped[datetime | None]
    """When a pause, a stop or a cancel was last requested."""
    stop_requested: Mapped[bool] = mapped_column(default=False)
    """Whether a stop was requested. The request outlives the worker that was told."""
    stopped_early: Mapped[bool] = mapped_column(default=False)
    """Whether the run has stopped because of that request."""
    retry_of: Mapped[str | None]
    """The job that this one continues. Not a foreign key: lineage outlives that job."""
    cloned_from: Mapped[str | None]
    """The job whose spec this job was cloned from."""

    parent_id: Mapped[str | None]
    """The job that this one is a shard of; readers see the shard only through that job. Not a foreign key: SQLite
    cannot drop such a column."""
    shard: Mapped[int | None]
    """The number of this shard, from 1."""
    shard_count: Mapped[int] = mapped_column(default=0)
    """The number of shards of this job, or of the job that this is a shard of; 0 for an evaluation in one piece."""
    shards_left: Mapped[int] = mapped_column(default=0)
    """How many of its shards have not succeeded. No worker can claim the job itself before this is 0."""
    shards: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    """What it shows of its shards."""

    created_by: Mapped[str | None]
    """The key that posted it."""
    updated_by: Mapped[str | None]
    """API key of the last request that acted on the job, such as a pause."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    updated_at: Mapped[datetime] = mapped_column(default=now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """When it was deleted. Nothing finds it from then on; maintenance deletes its rows in batches, and it last."""
    history_ends_at: Mapped[datetime | None]
    """When its events and its curve are deleted; None before its end, and once they are."""

    __table_args__ = (
        UniqueConstraint(project_id, idempotency_key),
        Index("uq_jobs_retry_of", "retry_of", unique=True),
        # One for the list of a project's jobs, and for each of its filters.
        Index("ix_jobs_of_project", "project_id", "id", **where("parent_id IS NULL AND deleted_at IS NULL")),
        Index(
            "ix_jobs_of_project_by_name",
            "project_id",
            "name",
            "id",
            **where("parent_id IS NULL AND deleted_at IS NULL"),
        ),
        Index(
            "ix_jobs_of_project_by_status",
            "project_id",
            "status",
            "id",
            **where("parent_id IS NULL AND deleted_at IS NULL"),
        ),
        Index(
            "ix_jobs_of_project_by_kind",
            "project_id",
            "kind",
            "id",
            **where("parent_id IS NULL AND deleted_at IS NULL"),
        ),
        Index(
            "ix_jobs_of_project_by_base_model",
            "project_id",
            "base_model",
            "id",
            **where("parent_id IS NULL AND deleted_at IS NULL"),
        ),
        Index(
            "ix_jobs_of_project_by_dataset",
            "project_id",
            "dataset",
            "id",
            **where("parent_id IS NULL AND deleted_at IS NULL"),
        ),
        Index("ix_jobs_to_claim", "status", "project_id", "requires", priority.desc(), "id"),
        Index("ix_jobs_held", "id", **where("lease_until IS NOT NULL")),
        # Without the other jobs: it would be read in search of all those that are no shards.
        Index("uq_jobs_shard", "parent_id", "shard", unique=True, **where("parent_id IS NOT NULL")),
        Index("ix_jobs_in_shards", "id", **where("shards_left > 0 AND finished_at IS NULL")),
        Index("ix_jobs_deleted", "deleted_at", **where("deleted_at IS NOT NULL")),
        Index("ix_jobs_with_history", "history_ends_at", **where("history_ends_at IS NOT NULL")),
    )


POSTED = Job.parent_id.is_(None), Job.deleted_at.is_(None)
"""The condition under which a list shows a job: it is no shard, and was not deleted."""
AT_WORK = Job.status.in_(CLAIMED), Job.shards_left == 0
"""The condition under which a worker holds the job itself. A job that waits for its shards has no worker."""


class Attempt(Table):
    """One claim of a job by one worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[Outcome | None] = mapped_column(String)
    cause_code: Mapped[str | None]
    """Why it was lost (`app.jobs.failures.CrashCode`), or the code of its failure."""
    cause: Mapped[str | None]
    """The same as a sentence for people. Code compares `cause_code`, never this."""
    device: Mapped[str | None]
    """The device that the training process computes on."""
    resumed_step: Mapped[int | None]
    """The training step of the state that it went on from."""
    log_parts: Mapped[int] = mapped_column(default=0)
    """The number of parts of its log in the object store."""
    log_size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of these parts."""
    writes: Mapped[int] = mapped_column(default=0)
    """The number of changes that its worker has committed."""
    train_examples: Mapped[int | None]
    """The number of training images that it has reported, as the three that follow."""
    test_examples: Mapped[int | None]
    working_seconds: Mapped[float | None]
    """The duration of its training process; None before that has finished."""
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        Index("ix_attempts_under_way", "job_id", "attempt", **where("ended_at IS NULL")),
        Index("ix_attempts_by_cause", "job_id", "cause_code"),
    )


class JobLabel(Table):
    """One pair of a job's metadata, for the filter of the list of jobs."""

    __tablename__ = "job_labels"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Hash of the pair: a value may be longer than an index takes."""
    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True, index=True)


class PastRun(Table):
    """A job that succeeded in one attempt, without shards and up to its last step, for the estimates of others."""

    __tablename__ = "past_runs"

    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    network: Mapped[str]
    """What jobs have in common whose pace is the same: `app.jobs.estimates` writes and reads it."""
    alike: Mapped[str]
    """What jobs have in common that are of the same kind, model and method as well."""
    spec: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    """The duration of its attempt."""
    working_seconds: Mapped[float]
    """The duration of its training process."""
    train_examples: Mapped[int]
    test_examples: Mapped[int]
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    """The size of its checkpoints and its log."""

    __table_args__ = (
        Index("ix_past_runs_of_network", "network", "job_id"),
        Index("ix_past_runs_alike", "alike", "job_id"),
    )


class _Totalled:
    """The columns that name a total. A column that does not apply is empty: a key has no nulls."""

    project_id: Mapped[str] = mapped_column(primary_key=True)
    """Not a foreign key: totals outlive the project. Empty for a total of the instance."""
    what: Mapped[str] = mapped_column(primary_key=True)
    """What is added up: `app.projects.totals` has the list."""
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    """The day in UTC, as 2026-11-30."""
    name: Mapped[str] = mapped_column(primary_key=True)
    """What else tells it from others, such as the status of jobs."""
    kind: Mapped[str] = mapped_column(primary_key=True)
    dataset: Mapped[str] = mapped_column(primary_key=True)
    base_model: Mapped[str] = mapped_column(primary_key=True)
    of_deleted: Mapped[bool] = mapped_column(primary_key=True)
    """Whether the rows that it was added up from were deleted, so that it cannot be added up again."""
    amount: Mapped[float]


class Total(_Totalled, Table):
    """A total, but for the changes that `TotalChange` still has."""

    __tablename__ = "totals"

    __table_args__ = (Index("ix_totals_of_project", "what", "project_id", "day"),)


class TotalChange(_Totalled, Table):
    """An amount to add to a total, written in the transaction that causes it; maintenance adds it to the `Total`.

    Rows are only inserted, so transactions that change the same total do not wait for each other.
    """

    __tablename__ = "total_changes"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    project_id: Mapped[str] = mapped_column()
    what: Mapped[str] = mapped_column()
    day: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column()
    kind: Mapped[str] = mapped_column()
    dataset: Mapped[str] = mapped_column()
    base_model: Mapped[str] = mapped_column()
    of_deleted: Mapped[bool] = mapped_column()

    __table_args__ = (Index("ix_total_changes_of_project", "what", "project_id", "day"),)


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

    __table_args__ = (
        ForeignKeyConstraint([job_id, attempt], [Attempt.job_id, Attempt.attempt], ondelete="CASCADE"),
        Index("ix_metrics_by_step", "job_id", "step", "attempt"),
    )


class Checkpoint(Table):
    """Weights in the object store. An object without such a row is garbage of a lost attempt."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ckpt"))
    job_id: Mapped[str] = mapped_column()
    attempt: Mapped[int] = mapped_column()
    step: Mapped[int]
    epoch: Mapped[float]
    """Epochs of training done."""
    key: Mapped[str]
    """The file's key in the object store."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now())

    __table_args__ = (
        ForeignKeyConstraint([job_id, attempt], [Attempt.job_id, Attempt.attempt], ondelete="CASCADE"),
        Index("ix_checkpoints_of_job", "job_id", "id"),
    )


class State(Table):
    """A file in the object store that the job's next attempt can resume from. The newest two of each kind are kept."""

    __tablename__ = "states"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[StateKind] = mapped_column(String, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """The attempt that wrote it."""
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[float]
    """Epochs of training done."""
    name: Mapped[str]
    """The file's name in the folder of the training process."""
    key: Mapped[str]
    """The file's key in the object store."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))

    __table_args__ = (ForeignKeyConstraint([job_id, attempt], [Attempt.job_id, Attempt.attempt], ondelete="CASCADE"),)


class Webhook(Table):
    """An address that a project has events sent to, and the secret that signs what is sent there."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("whk"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    url: Mapped[str] = mapped_column()
    events: Mapped[list[str]] = mapped_column(JSON)
    """The types of events that are sent for every job. A job whose spec names this address may ask for more of its own
    events."""
    description: Mapped[str]
    secret: Mapped[str]
    """Stored in clear, because it signs."""
    previous_secret: Mapped[str | None]
    """Signs as well, until `previous_until`."""
    previous_until: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[DisabledReason | None] = mapped_column(String)
    created_by: Mapped[str | None]
    """The key that created it, or that posted the job which named its address first."""
    updated_by: Mapped[str | None]
    """The key that last changed it."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    updated_at: Mapped[datetime] = mapped_column(default=now())

    __table_args__ = (UniqueConstraint(project_id, url), Index("ix_webhooks_of_project", "project_id", "id"))


class Delivery(Leased, Table):
    """One event to send to one webhook. It is written in the transaction of the event, and sent later by an API
    process under a lease."""

    __tablename__ = "deliveries"
    HELD = frozenset({"pending"})

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("dlv"))
    """Also the webhook-id that the receiver sees, the same each time."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey(Webhook.id, ondelete="CASCADE"))
    type: Mapped[DeliveryType] = mapped_column(String)
    job_id: Mapped[str | None]
    payload: Mapped[str]
    """The text that is signed and sent."""
    status: Mapped[DeliveryStatus] = mapped_column(String, default="pending")
    tries: Mapped[int] = mapped_column(default=0)
    """How often it was sent since it was created, or since it was last redelivered."""
    next_attempt_at: Mapped[datetime | None] = mapped_column(default=now())
    response_status: Mapped[int | None]
    """Of the last try, like `duration` and `error`."""
    duration: Mapped[float | None]
    """Seconds."""
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_deliveries_due", "status", "next_attempt_at"),
        Index("ix_deliveries_of_webhook", "webhook_id", "id"),
        Index("ix_deliveries_of_webhook_by_status", "webhook_id", "status", "id"),
        Index("ix_deliveries_finished", "finished_at", **where("finished_at IS NOT NULL")),
        Index("ix_deliveries_under_way", "lease_until", **where("lease_until IS NOT NULL")),
    )


class Upload(Table):
    """A file that a client sends in parts. `app.assets.uploads` moves it from one status to the next."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("upl"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    filename: Mapped[str]
    """The client's name for it; never part of a path here."""
    purpose: Mapped[Purpose] = mapped_column(String)
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes, as declared. They count against the project's quota from the start."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Of the whole file, as declared."""
    part_size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of every part except the last."""
    status: Mapped[UploadStatus] = mapped_column(String, default="pending")
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    key_suffix: Mapped[str]
    """The end of its keys in the object store: the project's id and random characters."""
    multipart_id: Mapped[str | None]
    """The object store's id for its parts; None where it comes in one piece, or no part has come."""
    created_by: Mapped[str | None]
    """The key that announced it."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    updated_at: Mapped[datetime] = mapped_column(default=now())
    expires_at: Mapped[datetime]
    """When the upload expires. Requesting part addresses, sending a part and completing the upload extend this."""
    ended_at: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]
    """When the objects that it had left behind were removed."""

    __table_args__ = (
        Index("ix_uploads_of_project", "project_id", "id"),
        Index("ix_uploads_of_project_by_status", "project_id", "status", "id"),
        Index("ix_uploads_of_project_by_purpose", "project_id", "purpose", "id"),
        Index("ix_uploads_of_project_by_sha256", "project_id", "sha256", "id"),
        Index("ix_uploads_by_expiry", "status", "expires_at"),
        Index("ix_uploads_to_sweep", "project_id", "ended_at", **where("ended_at IS NOT NULL AND swept_at IS NULL")),
        Index("ix_uploads_swept", "status", "swept_at"),
    )


class Asset(Table):
    """A data set or model of a project's own. A worker inspects it, as a task, before jobs can name it."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    name: Mapped[str] = mapped_column(String(128))
    """Its name in specs."""
    status: Mapped[AssetStatus] = mapped_column(String, default="pending")
    """Follows the status of its inspection's task."""
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    summary: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What lists show of the inspection's report."""
    upload_id: Mapped[str | None]
    """The upload that it was made of. That counts against the project's quota as long as this row is there."""
    filename: Mapped[str]
    """The client's name for it; never part of a path here."""
    key: Mapped[str]
    """The file's key in the object store: what was uploaded, and once it is ready what runs read."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of the object under `key`."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Of the object under `key`."""
    declared: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What its owner says of it: of a model, a `core.schema.import_spec.ImportSpec`; of a data set, a
    `core.schema.dataset_spec.DatasetSpec`."""
    report_prefix: Mapped[str | None]
    """The folder in the object store with the report of its inspection, once it is ready."""
    created_by: Mapped[str | None]
    """The key that created it."""
    created_at: Mapped[datetime] = mapped_column(default=now())
    finished_at: Mapped[datetime | None]
    """When its inspection ended."""


class Dataset(Asset):
    """Images of a project's own."""

    __tablename__ = "datasets"

    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_datasets_of_project", "project_id", "id"),
        Index("ix_datasets_of_upload", "upload_id"),
    )


class Model(Asset):
    """A base model of a project's own."""

    __tablename__ = "models"

    job_id: Mapped[str | None]
    """The job that it comes from. Not a foreign key: lineage outlives that job."""
    checkpoint_id: Mapped[str | None]
    """The checkpoint of that job."""

    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_models_of_project", "project_id", "id"),
        Index("ix_models_of_upload", "upload_id"),
        Index("ix_models_of_checkpoint", "checkpoint_id"),
        Index("ix_models_of_job", "job_id"),
    )


class Task(Leased, Table):
    """Small work that is not a job, such as the inspection of a data set. A process does it under a lease."""

    __tablename__ = "tasks"
    HELD = frozenset({"running"})

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("task"))
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    kind: Mapped[TaskKind] = mapped_column(String)
    subject_id: Mapped[str]
    """The row that it is about. Its table depends on the kind."""
    arguments: Mapped[dict[str, Any]] = mapped_column(default=dict)
    status: Mapped[TaskStatus] = mapped_column(String, default="queued")
    crashes: Mapped[int] = mapped_column(default=0)
    """How often a process that held it has crashed."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_tasks_waiting", "status", "kind", "id"),
        Index("ix_tasks_of_project", "project_id", "status"),
        Index("ix_tasks_of_subject", "subject_id", "id"),
        Index("ix_tasks_finished", "finished_at"),
    )


class Worker(Table):
    """A worker process. It keeps the row while it lives and deletes it when it ends; a row whose `alive_until` has
    passed is that of a worker that has vanished."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    """Its machine and process: the `owner` of what it holds."""
    resource_class: Mapped[ResourceClass] = mapped_column(String)
    slots: Mapped[int]
    """Jobs that it runs at the same time."""
    devices: Mapped[list[dict[str, Any]]]
    """The GPUs that it has for jobs, in the order in which a job gets them: name and bytes of memory of each."""
    capabilities: Mapped[list[str]] = mapped_column(JSON)
    """What it can do, sorted."""
    versions: Mapped[dict[str, Any]]
    """The versions of what results depend on."""
    is_stopping: Mapped[bool] = mapped_column(default=False)
    """Whether it claims nothing any more."""
    started_at: Mapped[datetime] = mapped_column(default=now())
    heartbeat_at: Mapped[datetime] = mapped_column(default=now())
    alive_until: Mapped[datetime]

    __table_args__ = (Index("ix_workers_alive", "alive_until"), Index("ix_workers_by_name", "name"))


class Audit(Table):
    """One act of a caller. The database refuses to change or delete such a row."""

    __tablename__ = "audit"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("act"))
    project_id: Mapped[str]
    """Not a foreign key: the row outlives the project."""
    actor: Mapped[str | None]
    """The key of the caller; None for the service itself."""
    action: Mapped[str]
    """A noun and a verb, such as `job.create`."""
    subject_id: Mapped[str]
    """The row that was acted on."""
    details: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(default=now())

    __table_args__ = (Index("ix_audit_of_project", "project_id", "id"),)


class Input(Table):
    """A file of the project's own that a job reads, as it was when the job was posted."""

    __tablename__ = "inputs"

    job_id: Mapped[str] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
    field: Mapped[str] = mapped_column(primary_key=True)
    """The field of the spec that names it."""
    source_id: Mapped[str] = mapped_column(index=True)
    """The data set, model or checkpoint. Not a foreign key: lineage outlives them."""
    sha256: Mapped[str] = mapped_column(String(64))
    made_by_job: Mapped[str | None]
    """The job that made the model or checkpoint."""
    made_by_checkpoint: Mapped[str | None]
    """The checkpoint that the model was made of, or the checkpoint itself."""

    __table_args__ = (Index("ix_inputs_made_by_job", "made_by_job"),)
