"""The classes of the schema: described field by field, and quick to import."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, get_origin, get_type_hints

import pytest

from core import schema
from core.schema.catalog import Entry
from core.schema.record import Record, field_docstrings

ROOT = Path(__file__).parents[3]
MODULES = [import_module(f"core.schema.{found.name}") for found in iter_modules(schema.__path__)]


def _described() -> list[type]:
    classes = {value for module in MODULES for value in vars(module).values() if isinstance(value, type)}
    return sorted((each for each in classes if issubclass(each, Record | Entry)), key=lambda each: each.__qualname__)


class Inner(Record):
    depth: int
    """How deep."""


class Outer(Inner):
    inner: Inner
    """What is
    inside."""


class Narrowed(Outer):
    depth: Any = 1
    """Exactly one."""


@pytest.mark.parametrize("kind", _described(), ids=lambda kind: kind.__name__)
def test_every_field_has_a_docstring(kind: type) -> None:
    bare = inspect.get_annotations(kind).keys() - field_docstrings(kind).keys()
    # A constant needs none.
    assert [name for name in bare if get_origin(get_type_hints(kind)[name]) is not Literal] == []


def test_docstrings_describe_the_fields_of_the_json_schema() -> None:
    described = Narrowed.model_json_schema()
    texts = {name: field.get("description") for name, field in described["properties"].items()}
    assert texts == {"depth": "Exactly one.", "inner": "What is\ninside."}
    assert described["$defs"]["Inner"]["properties"]["depth"]["description"] == "How deep."


def test_importing_the_schema_builds_no_validator() -> None:
    script = f"""
import {", ".join(module.__name__ for module in MODULES)}
def built(record):
    return [record.__name__] * record.__pydantic_complete__ + sum(map(built, record.__subclasses__()), [])
print(built(core.schema.record.Record))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
