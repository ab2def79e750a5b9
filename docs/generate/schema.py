"""JSON schemas in words: types, bounds and defaults."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from docs.generate.markdown import code

Schema = Mapping[str, Any]
Link = Callable[[str], str]
"""Turns the name of a schema into its mention."""

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
}


def kind(schema: Schema, link: Link = code) -> str:
    """Say what a value is, with its bounds."""
    bounds = [words.format(f"{schema[key]:,}") for key, words in _BOUNDS.items() if key in schema]
    return ", ".join([_kind(schema, link), *bounds])


def _kind(schema: Schema, link: Link) -> str:
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(kind(each, link) for each in schema[key]))
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    match schema.get("type"):
        case "array":
            items = schema.get("items", {})
            return f"list of {kind(items, link)}" if items else "list"
        case "object":
            values = schema.get("additionalProperties")
            return f"object of {kind(values, link)}" if isinstance(values, Mapping) and values else "object"
        case "string":
            return {"date-time": "time", "binary": "bytes", "uri": "URL"}.get(schema.get("format", ""), "text")
        case None:
            return "any value"
        case other:
            return str(other)


def default(schema: Schema) -> str:
    """Show a default; empty where there is none."""
    return code(json.dumps(schema["default"])) if "default" in schema else ""
