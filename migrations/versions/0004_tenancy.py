"""Projects, keys and their limits. Keys from before it may do everything.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ALL_SCOPES = '["jobs:read", "jobs:write", "files:write", "admin"]'


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("name", sa.String(), nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("scopes", sa.JSON(), nullable=False, server_default=ALL_SCOPES))
    op.add_column("api_keys", sa.Column("created_by", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_api_keys_project_id"), "api_keys", ["project_id"])
    op.add_column("projects", sa.Column("quotas", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("projects", sa.Column("out_of_gpu_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("estimate", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("jobs", sa.Column("actual", sa.JSON(none_as_null=True), nullable=True))
    by_rank = ["project_id", "status", sa.text("priority DESC"), "id"]
    op.create_index("ix_jobs_of_project_by_status", "jobs", by_rank)
    op.create_index("ix_jobs_on_dataset", "jobs", ["dataset", "status", "id"])
    op.create_table(
        "past_attempts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_past_attempts_project_id")),
        sa.PrimaryKeyConstraint("job_id", "epoch", name=op.f("pk_past_attempts")),
    )
    op.create_index("ix_past_attempts_of_project", "past_attempts", ["project_id", "ended_at"])


def downgrade() -> None:
    op.drop_table("past_attempts")
    op.drop_index("ix_jobs_on_dataset", "jobs")
    op.drop_index("ix_jobs_of_project_by_status", "jobs")
    op.drop_column("jobs", "actual")
    op.drop_column("jobs", "estimate")
    op.drop_column("projects", "out_of_gpu_until")
    op.drop_column("projects", "quotas")
    op.drop_index(op.f("ix_api_keys_project_id"), "api_keys")
    for column in ("expires_at", "created_by", "scopes", "name"):
        op.drop_column("api_keys", column)
