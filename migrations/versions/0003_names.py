"""Indexes that find a job by its name, and what was made of the results of a job.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_jobs_of_project_by_name", "jobs", ["project_id", "name", "id"], "parent_id IS NULL AND deleted_at IS NULL"),
    ("ix_inputs_made_by_job", "inputs", ["made_by_job"], None),
    ("ix_models_of_job", "models", ["job_id"], None),
)


def upgrade() -> None:
    """Make the indexes."""
    for name, table, columns, condition in _INDEXES:
        where = sa.text(condition) if condition else None
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Remove them."""
    for name, table, *_ in reversed(_INDEXES):
        op.drop_index(name, table)
