"""What a run says of its progress, in its events and in the answers of the service.

Apart from the events, which hold specs and reports: a command that lists jobs imports this and not those.
"""

from collections.abc import Iterable
from typing import Literal

from core.schema.record import Record

Phase = Literal["preparing", "training", "evaluating", "publishing"]
Subject = Literal["base", "result"]
Weights = Literal["raw", "averaged"]
"""raw: the weights as the optimiser leaves them. averaged: their average over the steps."""


class NormCount(Record):
    """The results of one norm's attack on the training images so far."""

    seen: int
    """Images attacked."""
    robust: int
    """Images that were classified correctly at the clean point and at every step of the attack."""


class Rate(Record):
    """A share of test points, with its 95 % Wilson interval."""

    value: float
    """The share, in [0, 1]."""
    count: int
    """Points that count for it."""
    total: int
    """Points evaluated."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    reliable: bool = True
    """Whether it can be relied on; where not, a flag of the report says why."""


class Flag(Record):
    """A reason to doubt an evaluation, or a fact to know when reading its numbers."""

    code: str
    """Stable, for programs."""
    message: str
    """The reason or the fact, as a sentence."""
    threat: str | None = None
    """Id of the threat that it is about; null where it is about all."""


class WarningRecord(Record, extra="ignore"):
    """A reason to doubt a spec, an input or a run; it ends nothing."""

    code: str
    """Stable, for programs."""
    message: str
    """What is wrong, for people."""
    remedy: str = ""
    """What to do; empty where the message says it, or nothing can be done."""
    threat: str | None = None
    """Id of the threat that it is about; null where it is about all."""

    @property
    def text(self) -> str:
        """The message with the remedy, in one line."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


def add_warnings(known: Iterable[WarningRecord], *new: WarningRecord) -> tuple[WarningRecord, ...]:
    """Add warnings to those of a run. A later one about the same replaces the earlier one, such as a higher count."""
    found: dict[tuple[str, str | None], WarningRecord] = {}
    for each in (*known, *new):
        found.pop((each.code, each.threat), None)
        found[each.code, each.threat] = WarningRecord(**each.model_dump(include=set(WarningRecord.model_fields)))
    return tuple(found.values())
