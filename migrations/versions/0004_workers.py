"""Workers are rows, and a job says what it requires of one.

Revision ID: 0004
Revises: 0003
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PRIORITY = sa.literal_column("priority DESC")
_JOBS = sa.table(
    "jobs",
    sa.column("id", sa.String),
    sa.column("spec", sa.JSON),
    sa.column("requires", sa.String),
    sa.column("finished_at", sa.DateTime),
)


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("resource_class", sa.String(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("is_stopping", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("alive_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_index("ix_workers_alive", "workers", ["alive_until"])
    op.create_index("ix_workers_by_name", "workers", ["name"])
    op.add_column("jobs", sa.Column("requires", sa.String(), nullable=False, server_default="{}"))
    _derive()
    op.drop_index("ix_jobs_to_claim", "jobs")
    op.create_index("ix_jobs_to_claim", "jobs", ["status", "project_id", "requires", _PRIORITY, "id"])
    # A planner could read all waiting jobs by this one, in search of the first of a project.
    op.drop_index("ix_jobs_waiting", "jobs")


def downgrade() -> None:
    op.create_index("ix_jobs_waiting", "jobs", ["status", _PRIORITY, "id"])
    op.drop_index("ix_jobs_to_claim", "jobs")
    op.create_index("ix_jobs_to_claim", "jobs", ["status", "project_id", _PRIORITY, "id"])
    op.drop_column("jobs", "requires")
    op.drop_table("workers")


def _derive() -> None:
    """Write what the unfinished jobs require, as their specs were then: those that require nothing have it already."""
    connection = op.get_bind()
    unfinished = sa.select(_JOBS.c.id, _JOBS.c.spec).where(_JOBS.c.finished_at.is_(None))
    for job_id, spec in connection.execute(unfinished).all():
        required = {}
        if str(spec.get("architecture", "")).startswith("timm/"):
            required["capabilities"] = ["architecture:timm"]
        if spec.get("gpus", 1) > 1:
            required["gpus"] = spec["gpus"]
        if required:
            text = json.dumps(required, separators=(",", ":"))
            connection.execute(sa.update(_JOBS).where(_JOBS.c.id == job_id).values(requires=text))
