"""The training method of a spec, with its options."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.schema.catalog import METHODS, NORMS, Norm
from core.schema.record import Record
from core.schema.suggestions import check_known

Loss = Literal["cross-entropy", "trades"]
Steps = Annotated[StrictInt, Field(ge=1, le=1000)]


TRADES_BETA = 6.0
"""The default weight of the divergence in the TRADES loss (Zhang et al. 2019)."""


def _default_option(name: str) -> Any:
    """Make the default of an option: that of the catalogue, or null where the method does not take it."""

    def default(data: Mapping[str, Any]) -> Any:
        return METHODS[data["name"]].options.get(name)

    return default


def _default_beta(data: Mapping[str, Any]) -> float | None:
    return TRADES_BETA if data["loss"] == "trades" else None


def _same_for_each_norm(steps: Any, info: ValidationInfo) -> Any:
    if type(steps) is not int:
        return steps
    if "norms" in info.data and not info.data["norms"]:
        raise PydanticCustomError(
            "option_not_taken", "method {method} attacks no norm: leave steps out", {"method": info.data.get("name")}
        )
    return dict.fromkeys(info.data.get("norms", ()), steps)


class Method(Record):
    """How a batch becomes a loss."""

    name: str = Field(examples=list(METHODS))
    """The method, by its name in the catalogue."""
    norms: tuple[Norm, ...] = Field(default_factory=lambda data: METHODS[data["name"]].norms or ())
    """The norms it attacks."""
    steps: Annotated[
        dict[Norm, Steps], BeforeValidator(_same_for_each_norm, json_schema_input_type=Steps | dict[Norm, Steps])
    ] = Field(default_factory=lambda data: dict.fromkeys(data["norms"], 10))
    """Steps of the training attack for each attacked norm, or one number for all. By default those that the
    catalogue has for the data set."""
    loss: Loss | None = Field(default_factory=_default_option("loss"))
    """The loss that the attack increases and the update decreases. cross-entropy: of the adversarial images. trades:
    beta times the divergence between the outputs for the adversarial and the clean images, to which the update adds the
    cross-entropy of the clean images (Zhang et al. 2019). Null for the methods nat and pat."""
    beta: Annotated[StrictFloat, Field(gt=0, le=100)] | None = Field(default_factory=_default_beta)
    """Weight of the divergence in the TRADES loss; null for the cross-entropy."""
    pairing: Annotated[StrictFloat, Field(ge=0, le=100)] | None = Field(default_factory=_default_option("pairing"))
    """Weight of RAMP's logit pairing loss, lambda in the paper: from the first to the second of the norms. Null for the
    other methods."""
    bound: Annotated[StrictFloat, Field(gt=0, le=10)] | None = Field(default_factory=_default_option("bound"))
    """The LPIPS distance, in the model's own features, within which perceptual adversarial training (PAT) changes an
    image. By default that of the catalogue for the data set. Null for the other methods."""
    margin_limit: Annotated[StrictFloat, Field(gt=0, le=1000)] | None = None
    """The margin, in logits, from which on the attack of PAT makes a misclassified image only more like the original.
    By default there is none, as in its authors' training."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_known("method", name, METHODS)

    @field_validator("norms")
    @classmethod
    def _check_norms(cls, norms: tuple[Norm, ...], info: ValidationInfo) -> tuple[Norm, ...]:
        entry = METHODS.get(info.data.get("name", ""))
        if entry and (len(set(norms)) < len(norms) or not entry.min_norms <= len(norms) <= entry.max_norms):
            few, many = entry.min_norms, entry.max_norms
            raise PydanticCustomError(
                "norm_count",
                "method {method} takes {count} of {norms}, each once: set method.norms",
                {"method": entry.name, "count": few if few == many else f"{few} to {many}", "norms": ", ".join(NORMS)},
            )
        return norms

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: dict[Norm, int], info: ValidationInfo) -> dict[Norm, int]:
        norms: tuple[Norm, ...] = info.data.get("norms", tuple(steps))
        if set(steps) != set(norms):
            raise PydanticCustomError(
                "steps_per_norm",
                "give steps for each attacked norm ({norms}), or one number for all",
                {"norms": ", ".join(norms) or "none"},
            )
        return {norm: steps[norm] for norm in norms}

    @field_validator("loss", "pairing", "bound")
    @classmethod
    def _check_option(cls, value: Any, info: ValidationInfo) -> Any:
        entry = METHODS.get(info.data.get("name", ""))
        if entry and value is not None and info.field_name not in entry.options:
            taking = [other.name for other in METHODS.values() if info.field_name in other.options]
            raise PydanticCustomError(
                "option_not_taken",
                "method {method} has no {option}: leave it out, or choose from {taking}",
                {"method": entry.name, "option": info.field_name, "taking": ", ".join(taking)},
            )
        if entry and value is None and info.field_name in entry.options:
            default = entry.options[info.field_name]
            raise PydanticCustomError("missing", "give a value, or leave it out for {default}", {"default": default})
        return value

    @field_validator("margin_limit")
    @classmethod
    def _check_margin_limit(cls, limit: float | None, info: ValidationInfo) -> float | None:
        if limit is not None and info.data.get("name", "pat") != "pat":
            raise PydanticCustomError(
                "option_not_taken",
                "method {method} has no margin_limit: leave it out, or choose pat",
                {"method": info.data["name"]},
            )
        return limit

    @field_validator("beta")
    @classmethod
    def _check_beta(cls, beta: float | None, info: ValidationInfo) -> float | None:
        loss = info.data.get("loss", "trades" if beta else None)
        if beta is not None and loss != "trades":
            raise PydanticCustomError("option_not_taken", "beta belongs to the TRADES loss: set method.loss to trades")
        if beta is None and loss == "trades":
            raise PydanticCustomError(
                "missing", "give a value, or leave it out for {default}", {"default": f"{TRADES_BETA:g}"}
            )
        return beta
