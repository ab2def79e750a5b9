"""Indexes that find a job by its name, and what was made of the results of a job.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_jobs_of_project_by_name", "jobs", ["project_id", "name", "id"]),
    ("ix_inputs_made_by_job", "inputs", ["made_by_job"]),
    ("ix_models_of_job", "models", ["job_id"]),
)


def upgrade() -> None:
    """Make the indexes."""
    for name, table, columns in _INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    """Remove them."""
    for name, table, _ in reversed(_INDEXES):
        op.drop_index(name, table)
