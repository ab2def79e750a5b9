"""Whoever looks for the jobs that wait for their shards passes over those that have ended.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_jobs_in_shards", "jobs")
    op.create_index("ix_jobs_in_shards", "jobs", ["finished_at", "shards_left", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_in_shards", "jobs")
    op.create_index("ix_jobs_in_shards", "jobs", ["shards_left", "id"])
