"""The columns of 0007, where it has run without them.

0007 was empty for a while, and 0008 was there already: a database that was brought up to date in that time says 0008,
and has no shards.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if "shards_left" in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("jobs")}:
        return
    # As in 0007.
    for column in (
        sa.Column("parent_id", sa.String(), nullable=True),
        sa.Column("shard", sa.Integer(), nullable=True),
        sa.Column("shard_count", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("shards_left", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("shards", sa.JSON(none_as_null=True), nullable=True),
    ):
        op.add_column("jobs", column)
    op.create_index("uq_jobs_shard", "jobs", ["parent_id", "shard"], unique=True)
    op.create_index("ix_jobs_in_shards", "jobs", ["shards_left", "id"])


def downgrade() -> None:
    """Nothing: they belong to 0007, which takes them away."""
