"""Validation errors of a spec, as an entry per field that says what is wrong and what to write instead."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.schema.catalog import Kind
from core.schema.errors import shorten
from core.schema.record import Record
from core.schema.spec import CONSEQUENCE, PATTERN_RULES, SPECS
from core.schema.suggestions import did_you_mean, find_close


class FieldError(Record, extra="ignore"):
    """One error in a spec, and its place."""

    pointer: str
    """JSON pointer of the field."""
    code: str
    """Stable, for programs."""
    detail: str
    """What is wrong and what to do."""


def field_errors(
    error: ValidationError, *, kinds: Mapping[Kind, type[BaseModel]] = SPECS, limit: int = 20
) -> list[FieldError]:
    """Turn a validation error of `parse` into an entry per field, up to `limit` of them.

    Errors that only follow from another one are left out. kinds: what was validated, by kind.
    """
    causes = (details for details in error.errors(include_url=False) if details["type"] != CONSEQUENCE)
    return [_field_error(details, kinds) for details in islice(causes, limit)]


def _field_error(details: ErrorDetails, kinds: Mapping[Kind, type[BaseModel]]) -> FieldError:
    path = [shorten(str(part)) for part in details["loc"]]
    kind = cast("Kind", path.pop(0)) if path and path[0] in kinds else "finetune"
    if path and path[-1] == "[key]":
        path.pop()
    context = details.get("ctx", {})
    pointer = context.get("pointer") or "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path)
    detail = details["msg"]
    match details["type"]:
        case "extra_forbidden":
            detail = _no_such_field(kind, path, kinds)
        case "unknown_kind":
            pointer = "/kind"
        case "literal_error" if path == ["kind"]:
            detail = f"kind is one of {', '.join(kinds)}; {did_you_mean(str(details['input']), kinds)}"
        case "literal_error":
            detail = f"choose {context['expected']}{_meant(details['input'], context['expected'])}"
        case "string_pattern_mismatch":
            detail = PATTERN_RULES[context["pattern"]]
        case "missing" if detail == "Field required":
            detail = "this field is required"
        case "tuple_type" | "list_type" if path and path[-1] in _LISTS:
            detail = f"give a list, such as {_LISTS[path[-1]]}"
        case kind_of_error if kind_of_error in _REMEDIES:
            detail = _REMEDIES[kind_of_error].format(**context)
        case "dict_type" | "model_type" | "model_attributes_type":
            detail = f"give an object, such as {_example(kinds[kind], path)}"
    return FieldError(pointer=pointer, code=details["type"], detail=detail)


# Pydantic says what it expected; the author of a spec needs to know what to write.
_REMEDIES: Mapping[str, str] = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "give a finite number",
    "float_type": "give a number",
    "int_type": "give an integer, without a point or quotes",
    "int_from_float": "give an integer",
    "bool_type": "give true or false, without quotes",
    "string_type": "give text in quotes",
    "string_too_long": "use at most {max_length} characters",
    "string_too_short": "use at least {min_length} characters",
    "too_long": "give at most {max_length}",
    "too_short": "give at least {min_length}",
    "list_type": 'give a list, such as ["linf", "l1"]',
    "tuple_type": 'give a list, such as ["linf", "l1"]',
}
_LISTS = {"budgets": "[1, 3, 9], or one number", "threats": '["l0", "fog"]'}
_OBJECTS = {
    "average": '{"decay": 0.995}',
    "awp": '{"strength": 0.005}',
    "eps": '{"linf": "8/255", "l1": 12}',
    "evaluation": '{"protocol": "fast"}',
    "method": '{"name": "e-at"}',
    "preprocessing": '{"image_size": 64}',
    "steps": '{"linf": 10, "l1": 10}, or one integer',
    "unseen": '{"preset": "ramp"}',
    "metadata": '{"team": "red"}',
}


def _no_such_field(kind: Kind, path: Sequence[str], kinds: Mapping[Kind, type[BaseModel]]) -> str:
    *outer, name = path
    if not outer and any(name in model.model_fields for model in kinds.values()):
        return f"a run of kind {kind} has no {name}: leave it out"
    here = _model_at(kinds[kind], outer).model_fields
    if find_close(name, here) is None:
        # A field of a part that stands beside it.
        for inner in ("evaluation", "method", "preprocessing", "average", "awp"):
            fields = _model_at(kinds[kind], [inner]).model_fields if inner in here else {}
            if fields and (close := find_close(name, fields)):
                return f"there is no field {name!r} here; did you mean '{inner}.{close}'?"
    return f"there is no field {name!r} here; {did_you_mean(name, here)}"


def _meant(given: Any, expected: str) -> str:
    """Name the choice that is closest to what was given."""
    close = find_close(given, re.findall("'([^']+)'", expected)) if isinstance(given, str) else None
    return f"; did you mean {close!r}?" if close else ""


def _example(model: type[BaseModel], path: Sequence[str]) -> str:
    """Give an object that may stand at a path."""
    if path and path[-1] in _OBJECTS:
        return _OBJECTS[path[-1]]
    fields = _model_at(model, path).model_fields if path else {}
    return json.dumps({name: field.examples[0] for name, field in fields.items() if field.examples})


def _model_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for name in path:
        if name.isdecimal():
            # A place in a list, whose items are of the model that was found for the list.
            continue
        model = _model_in(model.model_fields[name].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model that a field holds, such as Method in `Annotated[Method, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
