"""Networks that not every worker can build: the capabilities that stand for them, and what the workers offer."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.tables import Worker
from core.schema.catalog import PACKAGED, TIMM

_CAPABILITY = "architecture:"
TIMM_NETWORKS = f"{_CAPABILITY}timm"
"""The capability to build the networks of the timm library."""


def capability_of(architecture: str) -> str | None:
    """Name the capability that a worker needs to build a network; None for one that every worker builds."""
    if architecture.startswith(TIMM):
        return TIMM_NETWORKS
    return f"{_CAPABILITY}{architecture}" if architecture.startswith(PACKAGED) else None


def packaged_networks(session: Session) -> Sequence[str]:
    """List the networks of installed packages that workers have announced, those of workers that were lost within the
    last day included: a worker that starts again announces them again."""
    rows = session.scalars(select(Worker.capabilities)).all()
    names = {each.removeprefix(_CAPABILITY) for capabilities in rows for each in capabilities}
    return sorted(name for name in names if name.startswith(PACKAGED))
