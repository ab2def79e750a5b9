"""A data set has a spec, and the preprocessing of images is a part of a job's spec of its own.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_JOBS = sa.table("jobs", sa.column("id", sa.String), sa.column("spec", sa.JSON))
_RUNS = sa.table("past_runs", sa.column("job_id", sa.String), sa.column("spec", sa.JSON))
_ROWS = 1000
"""Rows that are read at once."""


def upgrade() -> None:
    op.add_column("datasets", sa.Column("declared", sa.JSON(), nullable=False, server_default="{}"))
    _rewrite(_JOBS, _JOBS.c.id, _to_preprocessing)
    _rewrite(_RUNS, _RUNS.c.job_id, _to_preprocessing)


def downgrade() -> None:
    _rewrite(_RUNS, _RUNS.c.job_id, _to_interpolation)
    _rewrite(_JOBS, _JOBS.c.id, _to_interpolation)
    op.drop_column("datasets", "declared")


def _rewrite(table, key, change) -> None:
    """Change the specs of a table."""
    connection = op.get_bind()
    after = ""
    while rows := connection.execute(sa.select(key, table.c.spec).where(key > after).order_by(key).limit(_ROWS)).all():
        for row_id, spec in rows:
            if change(spec):
                connection.execute(sa.update(table).where(key == row_id).values(spec=spec))
        after = rows[-1][0]


def _to_preprocessing(spec) -> bool:
    """Move the interpolation of an evaluation to the preprocessing; return whether there was one."""
    evaluation = spec.get("evaluation")
    if not isinstance(evaluation, dict) or "interpolation" not in evaluation:
        return False
    interpolation = evaluation.pop("interpolation")
    if spec.get("dataset") == "imagenet":
        spec["preprocessing"] = {"image_size": 224, "shorter_side": 256, "interpolation": interpolation}
    return True


def _to_interpolation(spec) -> bool:
    spec.pop("test_share", None)
    preprocessing = spec.pop("preprocessing", None) or {}
    spec.setdefault("evaluation", {})["interpolation"] = preprocessing.get("interpolation", "bilinear")
    return True
