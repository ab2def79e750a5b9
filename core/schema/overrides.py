"""Overrides of single fields of a spec, named with dots as on a command line: `method.steps` or `eps.l1`."""

import json
from typing import Any

from core.schema.errors import shorten
from core.schema.strict_json import read_json


class NotAnObject(ValueError):
    """An override sets a field inside a value that is not an object.

    field: the name of that value.
    """

    def __init__(self, field: str, value: Any, inner: str) -> None:
        super().__init__(f"{field} is {shorten(json.dumps(value))}, which has no {inner} to set")
        self.field = field


def read_value(text: str) -> Any:
    """Read a value as JSON, or as a word if it is not JSON."""
    try:
        return read_json(text)
    except ValueError:
        return text


def override(body: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at a dotted path, making the objects around it. Raises NotAnObject.

    A method that is given by name becomes an object with that name.
    """
    *outer, last = path.split(".")
    for field in outer:
        inside = body.get(field, {})
        if field == "method" and isinstance(inside, str):
            inside = {"name": inside}
        if not isinstance(inside, dict):
            raise NotAnObject(field, inside, last)
        body[field] = body = dict(inside)
    body[last] = value
