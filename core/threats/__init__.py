"""Threats that no training prepares for: attacks other than l_p balls, and common corruptions.

The attacks have the contract of `core.attacks`, and what they may do to an image is a threat of their own. Their random
numbers are `core.threats.random_numbers`, so that a result does not depend on the batch that a point is in.
`core.schema.threats` has the catalogue.
"""

from importlib import import_module
from typing import Any, cast

from core.attacks import Attack
from core.attacks.threat import Threat
from core.schema.threats import THREATS
from core.schema.unseen import UnseenThreat


def make_threat(asked: UnseenThreat, budget: float) -> Threat:
    """Make the threat of one budget. Raises BadInput where there is no such budget."""
    return cast("Threat", _find(THREATS[asked.name].threat)(int(budget) if THREATS[asked.name].is_integer else budget))


def make_attack(asked: UnseenThreat) -> Attack[Any, ...]:
    """Give the attack with its settings."""
    effort = {name: value for name in ("queries", "steps") if (value := getattr(asked, name)) is not None}
    return cast("Attack[Any, ...]", _find(THREATS[asked.name].attack)).with_settings(compat=asked.compat, **effort)


def _find(name: str) -> Any:
    """Import what the catalogue names, such as "pixels.PixelsThreat"."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
