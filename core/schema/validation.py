"""Validation errors of a spec, as an entry per field that says what is wrong and what to write instead."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.schema.errors import shorten
from core.schema.record import Record
from core.schema.spec import CONSEQUENCE, SPECS
from core.schema.suggestions import did_you_mean


class FieldError(Record, extra="ignore"):
    """One error in a spec, and its place."""

    pointer: str
    """JSON pointer of the field."""
    code: str
    """Stable, for programs."""
    detail: str
    """What is wrong and what to do."""


def field_errors(error: ValidationError, *, limit: int = 20) -> list[FieldError]:
    """Turn a validation error of `parse` into an entry per field, up to `limit` of them.

    Errors that only follow from another one are left out.
    """
    causes = (details for details in error.errors(include_url=False) if details["type"] != CONSEQUENCE)
    return [_field_error(details) for details in islice(causes, limit)]


def _field_error(details: ErrorDetails) -> FieldError:
    path = [shorten(str(part)) for part in details["loc"]]
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


# Pydantic says what it expected; the author of a spec needs to know what to write.
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


def _no_such_field(kind: str, path: Sequence[str]) -> str:
    *outer, name = path
    model: type[BaseModel] = SPECS[kind]  # type: ignore[index]  # the caller has looked it up
    if not outer and any(name in spec.model_fields for spec in SPECS.values()):
        return f"a run of kind {kind} has no {name}: leave it out"
    for field in outer:
        model = _model_in(model.model_fields[field].annotation) or model
    return f"there is no field {name!r} here; {did_you_mean(name, model.model_fields)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model that a field holds, such as Method in `Annotated[Method, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
