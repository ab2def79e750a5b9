"""What the rest of a job's life needs: pauses, stops, retries, budgets, attempts that say what befell them.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def of_jobs() -> list[sa.Column]:
    return [
        sa.Column("report_sha256", sa.String(length=64), nullable=True),
        sa.Column("losses_in_place", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("saved_step", sa.Integer(), nullable=False, server_default="-1"),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_requested", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("stopped_early", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("retry_of", sa.String(), nullable=True),
        sa.Column("cloned_from", sa.String(), nullable=True),
    ]


def of_attempts() -> list[sa.Column]:
    return [
        sa.Column("cause", sa.String(), nullable=True),
        sa.Column("device", sa.String(), nullable=True),
        sa.Column("resumed_step", sa.Integer(), nullable=True),
        sa.Column("log_parts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("log_size", sa.BigInteger(), nullable=False, server_default="0"),
    ]


def upgrade() -> None:
    # Columns one by one: to make SQLite's table of jobs anew would lose the trigger that guards its terminal states.
    for column in of_jobs():
        op.add_column("jobs", column)
    op.create_index("uq_jobs_retry_of", "jobs", ["retry_of"], unique=True)
    for column in of_attempts():
        op.add_column("attempts", column)
    with op.batch_alter_table("states") as states:
        states.add_column(sa.Column("progress", sa.Double(), nullable=False, server_default="0"))
        states.add_column(sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
        states.drop_constraint(op.f("pk_states"), type_="primary")
        states.create_primary_key(op.f("pk_states"), ["job_id", "kind", "epoch", "step"])


def downgrade() -> None:
    op.execute(
        "DELETE FROM states WHERE EXISTS (SELECT 1 FROM states AS newer WHERE newer.job_id = states.job_id AND "
        "newer.kind = states.kind AND (newer.epoch > states.epoch OR newer.epoch = states.epoch AND "
        "newer.step > states.step))"
    )
    with op.batch_alter_table("states") as states:
        states.drop_constraint(op.f("pk_states"), type_="primary")
        states.create_primary_key(op.f("pk_states"), ["job_id", "kind"])
        states.drop_column("size")
        states.drop_column("progress")
    for column in of_attempts():
        op.drop_column("attempts", column.name)
    op.drop_index("uq_jobs_retry_of", "jobs")
    for column in of_jobs():
        op.drop_column("jobs", column.name)
