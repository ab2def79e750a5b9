"""Protocols of an evaluation: which attacks each runs, in which order, with which settings.

The settings are AutoAttack's (Croce & Hein 2020, arXiv 2003.01690; for l1 2021, arXiv 2103.01208). The attacks, the
evaluation, the monitoring of a training run and the cost model read them here.
"""

from math import ceil
from typing import Literal, NamedTuple

from core.schema.catalog import Norm

Protocol = Literal["fast", "paper", "standard"]
"""fast: APGD on the cross-entropy with 20 steps. paper: APGD-CE and targeted APGD, as in E-AT's paper. standard: all of
AutoAttack."""
Engine = Literal["temper", "reference"]
"""temper: the attacks of `core.attacks`. reference: pyautoattack, the authors' code as a package."""
AttackName = Literal["apgd-ce", "apgd-t", "fab-t", "square"]

DEFAULT_PROTOCOL: Protocol = "paper"
LOGICAL_BATCH = 250
"""Points of a logical batch unless another number is asked for; AutoAttack's own default."""

STEPS = 100
"""Iterations of one run of APGD and of one walk of FAB."""
FAST_STEPS = 20
"""Iterations of APGD in the fast protocol, and on held-out images after an epoch of training."""
TARGETS = 9
"""Wrong classes that a targeted attack tries, the likeliest first; where the model has fewer, all of them."""
QUERIES = 5000
"""Queries of Square."""
PERCEPTUAL_STEPS = 10
"""Iterations of the perceptual attack in training."""


class Stage(NamedTuple):
    """A stretch of one run of APGD, in a ball of its own."""

    scale: int
    """The radius of the ball in units of eps."""
    steps: int


def apgd_stages(norm: Norm, steps: int) -> tuple[Stage, ...]:
    """Divide a run of APGD into stages: for l1 three with shrinking balls, else one."""
    if norm != "l1":
        return (Stage(1, steps),)
    early = ceil(0.3 * steps)
    return Stage(3, early), Stage(2, early), Stage(1, steps - 2 * early)


def settings_of(protocol: Protocol, norm: Norm) -> dict[AttackName, dict[str, int]]:
    """Give the attacks of a protocol in the order in which they run, each with its settings for the norm.

    apgd-ce takes restarts and steps, apgd-t and fab-t take targets and steps, square takes queries.
    """
    if protocol == "fast":
        return {"apgd-ce": {"restarts": 1, "steps": FAST_STEPS}}
    restarts, targets = (5, 5) if norm == "l1" else (1, TARGETS)
    settings: dict[AttackName, dict[str, int]] = {
        "apgd-ce": {"restarts": restarts, "steps": STEPS},
        "apgd-t": {"targets": targets, "steps": STEPS},
    }
    if protocol == "standard":
        settings |= {"fab-t": {"targets": TARGETS, "steps": STEPS}, "square": {"queries": QUERIES}}
    return settings
