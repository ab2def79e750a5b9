"""What keeps the work of a request from growing with the history: indexes for every list and filter, totals in place of
counts, past runs for estimates, numbers in the order of commits; and marks on what is deleted in batches.

Revision ID: 0002
Revises: 0001
"""

import hashlib

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

from app.platform.database import Timestamp

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SHOWN = "parent_id IS NULL AND deleted_at IS NULL"
_INDEXES = (
    ("ix_api_keys_of_project", "api_keys", ["project_id", "id"], None),
    ("ix_api_keys_valid", "api_keys", ["project_id", "expires_at"], "revoked_at IS NULL"),
    ("ix_api_keys_made_by", "api_keys", ["created_by", "id"], None),
    ("ix_api_keys_revoked", "api_keys", ["revoked_at"], None),
    ("ix_api_keys_expired", "api_keys", ["expires_at"], None),
    ("ix_jobs_of_project", "jobs", ["project_id", "id"], _SHOWN),
    ("ix_jobs_of_project_by_status", "jobs", ["project_id", "status", "id"], _SHOWN),
    ("ix_jobs_of_project_by_kind", "jobs", ["project_id", "kind", "id"], _SHOWN),
    ("ix_jobs_of_project_by_base_model", "jobs", ["project_id", "base_model", "id"], _SHOWN),
    ("ix_jobs_of_project_by_dataset", "jobs", ["project_id", "dataset", "id"], _SHOWN),
    ("ix_jobs_held", "jobs", ["id"], "lease_until IS NOT NULL"),
    ("ix_jobs_in_shards", "jobs", ["id"], "shards_left > 0 AND finished_at IS NULL"),
    ("ix_jobs_to_claim", "jobs", ["status", "project_id", sa.literal_column("priority DESC"), "id"], None),
    ("ix_jobs_deleted", "jobs", ["deleted_at"], "deleted_at IS NOT NULL"),
    ("ix_jobs_with_history", "jobs", ["history_ends_at"], "history_ends_at IS NOT NULL"),
    ("ix_attempts_under_way", "attempts", ["job_id", "attempt"], "ended_at IS NULL"),
    ("ix_attempts_by_cause", "attempts", ["job_id", "cause_code"], None),
    ("ix_metrics_by_step", "metrics", ["job_id", "step", "attempt"], None),
    ("ix_checkpoints_of_job", "checkpoints", ["job_id", "id"], None),
    ("ix_webhooks_of_project", "webhooks", ["project_id", "id"], None),
    ("ix_deliveries_of_webhook_by_status", "deliveries", ["webhook_id", "status", "id"], None),
    ("ix_deliveries_finished", "deliveries", ["finished_at"], "finished_at IS NOT NULL"),
    ("ix_deliveries_under_way", "deliveries", ["lease_until"], "lease_until IS NOT NULL"),
    ("ix_uploads_of_project_by_status", "uploads", ["project_id", "status", "id"], None),
    ("ix_uploads_of_project_by_purpose", "uploads", ["project_id", "purpose", "id"], None),
    ("ix_uploads_of_project_by_sha256", "uploads", ["project_id", "sha256", "id"], None),
    ("ix_uploads_by_expiry", "uploads", ["status", "expires_at"], None),
    ("ix_uploads_to_sweep", "uploads", ["project_id", "ended_at"], "ended_at IS NOT NULL AND swept_at IS NULL"),
    ("ix_uploads_swept", "uploads", ["status", "swept_at"], None),
    ("ix_datasets_of_project", "datasets", ["project_id", "id"], None),
    ("ix_datasets_of_upload", "datasets", ["upload_id"], None),
    ("ix_models_of_project", "models", ["project_id", "id"], None),
    ("ix_models_of_upload", "models", ["upload_id"], None),
    ("ix_models_of_checkpoint", "models", ["checkpoint_id"], None),
    ("ix_tasks_finished", "tasks", ["finished_at"], None),
)
_REPLACED = (
    ("ix_api_keys_project_id", "api_keys", ["project_id"]),
    ("ix_jobs_of_project", "jobs", ["project_id", "id"]),
    ("ix_jobs_of_project_by_status", "jobs", ["project_id", "status", sa.literal_column("priority DESC"), "id"]),
    ("ix_jobs_in_shards", "jobs", ["finished_at", "shards_left", "id"]),
    ("ix_jobs_on_dataset", "jobs", ["dataset", "status", "id"]),
    ("ix_checkpoints_job_id", "checkpoints", ["job_id"]),
    ("ix_uploads_by_status", "uploads", ["status", "id"]),
)
_COLUMNS = (
    ("projects", sa.Column("latest_id", sa.String(26), nullable=False, server_default="")),
    ("projects", sa.Column("deleted_at", sa.DateTime(timezone=True))),
    ("jobs", sa.Column("deleted_at", sa.DateTime(timezone=True))),
    ("jobs", sa.Column("history_ends_at", sa.DateTime(timezone=True))),
    ("attempts", sa.Column("train_examples", sa.Integer())),
    ("attempts", sa.Column("test_examples", sa.Integer())),
    ("attempts", sa.Column("working_seconds", sa.Double())),
    ("attempts", sa.Column("peak_memory_bytes", sa.BigInteger())),
)
_PAST = sa.table(
    "past_attempts",
    *(sa.column(name) for name in ("project_id", "job_id", "kind", "dataset", "base_model", "gpus")),
    *(sa.column(name, Timestamp()) for name in ("started_at", "ended_at")),
    *(sa.column(name) for name in ("outcome", "waited")),
)
_JOBS = sa.table(
    "jobs", *(sa.column(name) for name in ("project_id", "id", "parent_id")), sa.column("labels", sa.JSON())
)
_JOB_LABELS = sa.table("job_labels", *(sa.column(name) for name in ("project_id", "digest", "job_id")))
_KEY = ("project_id", "what", "day", "name", "kind", "dataset", "base_model")


def upgrade() -> None:
    for name, table, _ in _REPLACED:
        op.drop_index(name, table)
    op.drop_index("uq_jobs_shard", "jobs")
    shards = sa.text("parent_id IS NOT NULL")
    op.create_index(
        "uq_jobs_shard", "jobs", ["parent_id", "shard"], unique=True, sqlite_where=shards, postgresql_where=shards
    )
    for table, column in _COLUMNS:
        op.add_column(table, column)
    _create_tables()
    for name, table, columns, condition in _INDEXES:
        where = sa.text(condition) if condition else None
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
    if op.get_bind().execute(sa.text("SELECT 1 FROM projects LIMIT 1")).first():
        _add_up()
    op.drop_table("past_attempts")


def downgrade() -> None:
    for name, table, _, _ in reversed(_INDEXES):
        op.drop_index(name, table)
    op.drop_index("uq_jobs_shard", "jobs")
    op.create_index("uq_jobs_shard", "jobs", ["parent_id", "shard"], unique=True)
    for table in ("total_changes", "totals", "past_runs", "job_labels"):
        op.drop_table(table)
    for table, column in reversed(_COLUMNS):
        op.drop_column(table, column.name)
    for name, table, columns in _REPLACED:
        op.create_index(name, table, columns)
    op.create_table(
        "past_attempts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("waited", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_past_attempts_project_id_projects")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_past_attempts")),
    )
    op.create_index("ix_past_attempts_of_project", "past_attempts", ["project_id", "ended_at"])


def _create_tables() -> None:
    op.create_table(
        "job_labels",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "digest", "job_id", name=op.f("pk_job_labels")),
    )
    op.create_index(op.f("ix_job_labels_job_id"), "job_labels", ["job_id"])
    op.create_table(
        "past_runs",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("network", sa.String(), nullable=False),
        sa.Column("alike", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("working_seconds", sa.Double(), nullable=False),
        sa.Column("train_examples", sa.Integer(), nullable=False),
        sa.Column("test_examples", sa.Integer(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_past_runs_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_past_runs")),
    )
    op.create_index("ix_past_runs_of_network", "past_runs", ["network", "job_id"])
    op.create_index("ix_past_runs_alike", "past_runs", ["alike", "job_id"])
    op.create_table(
        "totals",
        *_key(),
        sa.Column("of_deleted", sa.Boolean(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, "of_deleted", name=op.f("pk_totals")),
    )
    op.create_index("ix_totals_of_project", "totals", ["what", "project_id", "day"])
    op.create_table(
        "total_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        *_key(),
        sa.Column("of_deleted", sa.Boolean(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_total_changes")),
    )
    op.create_index("ix_total_changes_of_project", "total_changes", ["what", "project_id", "day"])


def _key() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(10 if name == "day" else None), nullable=False) for name in _KEY]


def _add_up() -> None:
    """Write the totals and labels of the rows that are there."""
    # Names columns of this revision only, so it runs with a later version of the tables, too.
    from app.projects import totals

    with Session(op.get_bind()) as session:
        _write_labels(session)
        totals.recount(session)
        past = session.execute(sa.select(_PAST)).all()
        totals.add(session, totals.account(totals.Work(*row) for row in past), of_deleted=True)


def _write_labels(session: Session) -> None:
    """Write a row for each pair of the metadata of jobs, with a hash of the pair."""
    jobs = sa.select(_JOBS.c.project_id, _JOBS.c.id, _JOBS.c.labels).where(_JOBS.c.parent_id.is_(None))
    for some in session.execute(jobs.execution_options(yield_per=1000)).partitions():
        rows = [
            {
                "project_id": project_id,
                "digest": hashlib.sha256(f"{key}={value}".encode()).hexdigest(),
                "job_id": job_id,
            }
            for project_id, job_id, labels in some
            for key, value in labels.items()
        ]
        if rows:
            session.execute(sa.insert(_JOB_LABELS), rows)
