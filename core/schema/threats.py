"""The catalogue of threats that no training prepares for, and presets of them. The entries stand in threats.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.schema.catalog import Entry, read_entries

ThreatKind = Literal["search", "ascent", "corruption"]
"""search: a random search that sees the logits alone. ascent: gradient steps on the parameters of a differentiable
distortion. corruption: a common corruption, which is drawn and not searched for."""

COMMON = "common/"
"""Prefix of the name of a common corruption: some share their names with attacks."""
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class ThreatEntry(Entry):
    """A threat that `evaluation.unseen` can name."""

    kind: ThreatKind
    """How it is searched."""
    unit: str
    """What a budget counts."""
    budgets: tuple[float, ...]
    """The default budgets."""
    max_budget: float
    """The largest budget."""
    is_integer: bool = False
    """Whether a budget must be an integer."""
    threat: str = ""
    """The class of the threat, made of a budget: its name below `core.threats`. Empty for a corruption."""
    attack: str = ""
    """The attack: its name below `core.threats`. Empty for a corruption."""
    queries: int | None = None
    """The default number of queries of a search; null for the other kinds."""
    steps: int | None = None
    """The default number of steps of an ascent; null for the other kinds."""


@dataclass(frozen=True, kw_only=True)
class PresetEntry:
    """A list of threats, with where it comes from."""

    name: str
    """The name that `evaluation.unseen` uses."""
    provenance: str
    """Where the threats and their settings come from."""
    threats: tuple[dict[str, Any], ...]
    """The threats, as in a spec."""


def _corruption(name: str) -> ThreatEntry:
    return ThreatEntry(
        name=COMMON + name,
        description=f"The common corruption {name} (Hendrycks & Dietterich 2019).",
        kind="corruption",
        unit="severity",
        budgets=tuple(map(float, SEVERITIES)),
        max_budget=SEVERITIES[-1],
        is_integer=True,
    )


def _preset(name: str, table: Mapping[str, Any]) -> PresetEntry:
    severities = table.get("severities", SEVERITIES)
    common = [{"name": COMMON + corruption, "budgets": list(severities)} for corruption in _COMMON[table["common"]]]
    threats = (*common, *table.get("threats", ()))
    return PresetEntry(name=name, provenance=table["provenance"], threats=threats)


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
_COMMON: Mapping[str, list[str]] = _TABLES["common"]

STANDARD_CORRUPTIONS: tuple[str, ...] = tuple(COMMON + name for name in _COMMON["standard"])
"""The corruptions whose mean accuracy is that "under common corruptions"."""
THREATS: dict[str, ThreatEntry] = {
    **read_entries(ThreatEntry, _TABLES["threats"]),
    **{COMMON + name: _corruption(name) for names in _COMMON.values() for name in names},
}
PRESETS: Mapping[str, PresetEntry] = {name: _preset(name, table) for name, table in _TABLES["presets"].items()}
