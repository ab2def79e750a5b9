"""What remains of an attempt says how it ended, and how long its job had waited: a counter never falls. Of those that
remain from before it, nobody knows.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("past_attempts", sa.Column("outcome", sa.String(), nullable=False, server_default="unknown"))
    op.add_column("past_attempts", sa.Column("waited", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("past_attempts", "waited")
    op.drop_column("past_attempts", "outcome")
