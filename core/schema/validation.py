"""What to tell the author of a spec: what is wrong with it, by field, and what is valid and yet likely to disappoint.

No torch: the service answers with it, the command line prints it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import sqrt

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from core.schema.catalog import MODELS, NORMS
from core.schema.spec import (
    CONSEQUENCE,
    EXTRA_SHARE,
    SPECS,
    AnySpec,
    EvaluateSpec,
    Evaluation,
    JobWebhook,
    Method,
    did_you_mean,
)


class SpecWarning(BaseModel):
    """Something about a valid spec that its author should know."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    code: str
    """Stable, for programs."""
    message: str
    """For people."""


def spec_warnings(spec: AnySpec) -> tuple[SpecWarning, ...]:
    """Say what is valid and yet likely to disappoint."""
    found = []
    eps = spec.eps
    base = MODELS.get(getattr(spec, "base_model", ""))
    if base and base.norm in eps and abs(eps[base.norm] - base.eps) > 1e-6:
        found.append(
            SpecWarning(
                code="eps_differs_from_base",
                message=f"{base.name} was made robust at {base.norm} {base.eps:g}, this run uses {eps[base.norm]:g}",
            )
        )
    if isinstance(spec, EvaluateSpec):
        return tuple(found)
    if "extra_share" in spec.model_fields_set and spec.extra_share != EXTRA_SHARE and not spec.extra_dataset:
        found.append(
            SpecWarning(
                code="extra_share_unused",
                message="extra_share changes nothing without a second data set: name one as extra_dataset",
            )
        )
    if spec.method.name == "nat":
        found.append(SpecWarning(code="no_attack", message="natural training attacks nothing: expect no robustness"))
    if spec.method.name == "pat":
        found.append(
            SpecWarning(
                code="no_norm_attacked",
                message="perceptual training attacks no l_p ball: expect less robustness at eps than from the other "
                "methods, and more against changes that are no ball",
            )
        )
    extremes = spec.method.name == "e-at" and "l2" not in spec.method.norms
    # The convex hull of the linf and the l1 ball contains an l2 ball of about this radius (Croce & Hein 2020, 2022).
    if extremes and eps.keys() >= set(NORMS) and sqrt(eps["l1"] * eps["linf"]) < eps["l2"]:
        found.append(
            SpecWarning(
                code="l2_not_covered",
                message=f"sqrt(eps.l1 * eps.linf) = {sqrt(eps['l1'] * eps['linf']):.3g} is below eps.l2 = "
                f"{eps['l2']:g}: E-AT with linf and l1 need not make the model robust to l2; consider method sat, or "
                "e-at with all three norms",
            )
        )
    return tuple(found)


class FieldError(BaseModel):
    """One thing wrong with a spec, and where."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    pointer: str
    """JSON pointer of the field."""
    code: str
    """Stable, for programs."""
    detail: str
    """What is wrong and what to do."""


def field_errors(error: ValidationError, *, limit: int = 20) -> list[FieldError]:
    """Turn a validation error of `parse` into an entry per field, each with its remedy, up to `limit` of them."""
    own = (details for details in error.errors(include_url=False) if details["type"] != CONSEQUENCE)
    return [_field_error(details) for details in islice(own, limit)]


def _field_error(details: ErrorDetails) -> FieldError:
    path = [_shorten(str(part)) for part in details["loc"]]
    kind = path.pop(0) if path and path[0] in SPECS else "finetune"
    if path and path[-1] == "[key]":
        path.pop()
    context = details.get("ctx", {})
    pointer = context.get("pointer") or "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path)
    detail = details["msg"]
    match details["type"]:
        case "extra_forbidden":
            detail = _no_such_field(kind, path)
        case "unknown_kind":
            pointer = "/kind"
        case "missing" if detail == "Field required":
            detail = "this field is required"
        case kind_of_error if kind_of_error in _REMEDIES:
            detail = _REMEDIES[kind_of_error].format(**context)
        case "dict_type" | "model_type" | "model_attributes_type":
            detail = f"give an object, such as {_OBJECTS.get(path[-1] if path else '', '{}')}"
    return FieldError(pointer=pointer, code=details["type"], detail=detail)


# Pydantic says what it expected; an author wants to know what to write.
_REMEDIES: Mapping[str, str] = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "give a finite number",
    "float_type": "give a number",
    "int_type": "give a whole number, without a point or quotes",
    "int_from_float": "give a whole number",
    "bool_type": "give true or false, without quotes",
    "string_type": "give text in quotes",
    "string_too_long": "use at most {max_length} characters",
    "string_too_short": "use at least {min_length} characters",
    "too_long": "give at most {max_length}",
    "literal_error": "choose {expected}",
    "list_type": 'give a list, such as ["linf", "l1"]',
    "tuple_type": 'give a list, such as ["linf", "l1"]',
}
_OBJECTS = {
    "eps": '{"linf": "8/255", "l1": 12}',
    "evaluation": '{"protocol": "fast"}',
    "method": '{"name": "e-at"}',
    "steps": '{"linf": 10, "l1": 10}, or one whole number',
    "metadata": '{"team": "red"}',
    "webhook": '{"url": "https://example.com/temper"}',
}


_PARTS: Mapping[str, type[BaseModel]] = {"method": Method, "evaluation": Evaluation, "webhook": JobWebhook}


def _no_such_field(kind: str, path: Sequence[str]) -> str:
    *outer, name = path
    if outer:
        fields: Iterable[str] = _PARTS[outer[0]].model_fields
    else:
        fields = SPECS[kind].model_fields  # type: ignore[index]  # the caller has looked it up
        if any(name in spec.model_fields for spec in SPECS.values()):
            return f"a run of kind {kind} has no {name}: leave it out"
    return f"there is no field {name!r} here; {did_you_mean(name, fields)}"


def _shorten(text: str) -> str:
    return text if len(text) <= 64 else f"{text[:64]}..."
