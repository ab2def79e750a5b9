"""The part of a spec that asks for threats that no training prepares for."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.schema.record import Record
from core.schema.suggestions import check_known
from core.schema.threats import COMMON, PRESETS, STANDARD_CORRUPTIONS, THREATS

MOST_BUDGETS = 32


def _as_tuple(budgets: Any) -> Any:
    return (budgets,) if type(budgets) in (int, float) else budgets


def _default(field: str) -> Any:
    """Make the default of a field: that of the catalogue for the threat."""

    def default(data: Mapping[str, Any]) -> Any:
        return getattr(THREATS[data["name"]], field)

    return default


class UnseenThreat(Record):
    """One threat, with its settings."""

    name: str = Field(examples=list(THREATS))
    """The threat, by its name in the catalogue."""
    budgets: Annotated[
        tuple[StrictFloat, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=MOST_BUDGETS)
    ] = Field(default_factory=_default("budgets"))
    """What the attacker may do, such as a number of pixels; the catalogue says what it counts. Several make a sweep
    from the smallest to the largest: a point that is fooled at a smaller budget counts as fooled at a larger one. Of a
    common corruption, the severities from 1 to 5."""
    queries: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = Field(default_factory=_default("queries"))
    """Queries of a random search; null for the other threats."""
    steps: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = Field(default_factory=_default("steps"))
    """Steps of a gradient attack; null for the other threats."""
    compat: StrictBool = False
    """Whether the attack keeps the quirks of its authors' code, such as random numbers that a batch shares, and the
    last iterate in place of the best."""

    @property
    def corruption(self) -> str | None:
        """The name of the common corruption that it is, without the prefix; None for an attack."""
        return self.name.removeprefix(COMMON) if self.name.startswith(COMMON) else None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_known("threat", name, THREATS)

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, budgets: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        entry = THREATS.get(info.data.get("name", ""))
        if entry is None:
            return budgets
        for budget in budgets:
            is_allowed = not entry.is_integer or float(budget).is_integer()
            if not (isfinite(budget) and 0 < budget <= entry.max_budget and is_allowed):
                raise PydanticCustomError(
                    "budget_out_of_range",
                    "{budget} is not a valid budget for {threat}: give {kind} above 0, at most {most} ({unit})",
                    {
                        "budget": f"{budget:g}",
                        "threat": entry.name,
                        "kind": "an integer" if entry.is_integer else "a number",
                        "most": f"{entry.max_budget:g}",
                        "unit": entry.unit,
                    },
                )
        if len(set(budgets)) < len(budgets):
            raise PydanticCustomError("repeated", "a budget of {threat} is given twice", {"threat": entry.name})
        return tuple(sorted(budgets))

    @field_validator("queries", "steps")
    @classmethod
    def _check_effort(cls, value: int | None, info: ValidationInfo) -> int | None:
        entry = THREATS.get(info.data.get("name", ""))
        if entry is None or info.field_name is None:
            return value
        default = getattr(entry, info.field_name)
        if value is not None and default is None:
            raise PydanticCustomError(
                "option_not_taken",
                "threat {threat} has no {option}: leave it out",
                {"threat": entry.name, "option": info.field_name},
            )
        return default if value is None else value

    @field_validator("compat")
    @classmethod
    def _check_compat(cls, compat: bool, info: ValidationInfo) -> bool:
        entry = THREATS.get(info.data.get("name", ""))
        if entry and compat and entry.kind == "corruption":
            raise PydanticCustomError(
                "option_not_taken", "threat {threat} has no compat: leave it out", {"threat": entry.name}
            )
        return compat


def _expand(threats: Any) -> Any:
    """Replace names by threats with their defaults, and names of presets by their threats."""
    return list(_expanded(threats)) if isinstance(threats, list | tuple) else threats


def _expanded(threats: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    for threat in threats:
        match threat:
            case str() if threat in PRESETS:
                yield from PRESETS[threat].threats
            case str():
                yield {"name": threat}
            case _:
                yield threat


def _default_threats(data: Mapping[str, Any]) -> Any:
    preset = PRESETS.get(data.get("preset") or "")
    return tuple(UnseenThreat.model_validate(threat) for threat in preset.threats) if preset else ()


class Unseen(Record):
    """Threats that no training prepares for."""

    preset: str | None = Field(default=None, examples=list(PRESETS))
    """A list of threats from the catalogue, which says where it comes from; null for threats of one's own choice."""
    threats: Annotated[tuple[UnseenThreat, ...], BeforeValidator(_expand), Field(max_length=100)] = Field(
        default_factory=_default_threats
    )
    """The threats, in the order in which they are evaluated. In a list, a name stands for the threat with its default
    settings, and the name of a preset for all its threats."""
    reference_errors: dict[str, Annotated[StrictFloat, Field(gt=0, le=1)]] | None = None
    """The mean error, over the severities, of a reference model per common corruption. With one for each of the 15, the
    report has the mean corruption error (mCE): the mean ratio of the errors."""

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        return None if preset is None else check_known("preset", preset, PRESETS)

    @field_validator("threats")
    @classmethod
    def _check_threats(cls, threats: tuple[UnseenThreat, ...], info: ValidationInfo) -> tuple[UnseenThreat, ...]:
        if not threats and "preset" in info.data:
            raise PydanticCustomError(
                "missing", "name a preset ({presets}), or a list of threats", {"presets": ", ".join(PRESETS)}
            )
        names = [threat.name for threat in threats]
        for name in names:
            if names.count(name) > 1:
                raise PydanticCustomError(
                    "repeated", "threat {threat} is named twice: give all its budgets in one", {"threat": name}
                )
        preset = info.data.get("preset")
        if preset and threats != _default_threats(info.data):
            raise PydanticCustomError(
                "not_the_preset", "the preset {preset} has other threats: leave preset out", {"preset": preset}
            )
        return threats

    @field_validator("reference_errors")
    @classmethod
    def _check_reference(cls, errors: dict[str, float] | None) -> dict[str, float] | None:
        if errors is None:
            return None
        if missing := [name for name in STANDARD_CORRUPTIONS if name not in errors]:
            raise PydanticCustomError(
                "missing",
                "reference_errors has no value for {missing}: give one per standard corruption",
                {"missing": missing[0]},
            )
        for name in errors:
            check_known("corruption", name, STANDARD_CORRUPTIONS)
        return errors

    @property
    def provenance(self) -> str | None:
        """Say where the preset comes from; None for threats of the user's own choice."""
        return PRESETS[self.preset].provenance if self.preset else None


def read_unseen(value: Any) -> Any:
    """Read the short forms: the name of a preset, or a list of threats."""
    match value:
        case str():
            return {"preset": value}
        case list() | tuple():
            return {"threats": value}
    return value


AskedUnseen = Annotated[
    Unseen, BeforeValidator(read_unseen, json_schema_input_type=str | list[str | UnseenThreat] | Unseen)
]
"""The threats of a spec, also as the name of a preset or as a list."""
