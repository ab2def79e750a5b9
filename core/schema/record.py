"""The base of every spec, event and report: frozen, closed to unknown fields, and cheap to import.

Importing a module of such classes must take milliseconds, because every command of the client does. So the validators
are built at first use (`defer_build`), and the docstrings under the fields become the descriptions of the JSON schema
when that schema is asked for; pydantic's own `use_attribute_docstrings` reads the source of each class at import.
"""

import ast
import inspect
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue


class Record(BaseModel):
    """A value that is checked when it is made and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: "GetJsonSchemaHandler") -> "JsonSchemaValue":
        schema = handler.resolve_ref_schema(handler(core_schema))
        for base in cls.__mro__:
            if base is not Record and issubclass(base, Record) and not base.__pydantic_generic_metadata__["origin"]:
                for name, text in field_docstrings(base).items():
                    if field := cls.model_fields.get(name):
                        schema["properties"][field.alias or name].setdefault("description", text)
        return schema


def field_docstrings(model: type) -> dict[str, str]:
    """Find the docstring under each field that a class declares itself."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
