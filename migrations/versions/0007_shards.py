"""Evaluations in shards.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def of_jobs() -> list[sa.Column]:
    return [
        sa.Column("parent_id", sa.String(), nullable=True),
        sa.Column("shard", sa.Integer(), nullable=True),
        sa.Column("shard_count", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("shards_left", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("shards", sa.JSON(none_as_null=True), nullable=True),
    ]


def upgrade() -> None:
    # Columns one by one: to make SQLite's table of jobs anew would lose the trigger that guards its terminal states.
    for column in of_jobs():
        op.add_column("jobs", column)
    op.create_index("uq_jobs_shard", "jobs", ["parent_id", "shard"], unique=True)
    op.create_index("ix_jobs_in_shards", "jobs", ["shards_left", "id"])


def downgrade() -> None:
    # The version before knows neither shards nor jobs that wait for theirs: it makes those evaluations in one piece.
    op.execute("DELETE FROM jobs WHERE parent_id IS NOT NULL")
    # As if their worker had just been lost, so that they are taken back.
    op.execute(
        "UPDATE jobs SET lease_until = updated_at "
        "WHERE shards_left > 0 AND status IN ('running', 'pausing', 'cancelling')"
    )
    op.drop_index("ix_jobs_in_shards", "jobs")
    op.drop_index("uq_jobs_shard", "jobs")
    for column in of_jobs():
        op.drop_column("jobs", column.name)
