"""The client reads every answer of newer and older services."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pkgutil import iter_modules
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import app.schemas
from app.schemas.answer import Answer, Page
from app.schemas.jobs import Job
from client.errors import Unreadable
from client.reading import read
from core.schema.events import Stamped
from core.schema.inspection_report import DatasetInspection, ModelInspection
from core.schema.report import Reports
from core.schema.spec import FineTuneSpec, Spec

SPEC = FineTuneSpec(base_model="digits-cnn-linf").model_dump(mode="json")
FUTURE = "from the future"


def answers() -> Iterator[type[BaseModel]]:
    """Every class of answer that the client may read as a whole."""
    for module in iter_modules(app.schemas.__path__, "app.schemas."):
        for value in vars(import_module(module.name)).values():
            is_answer = isinstance(value, type) and issubclass(value, Answer) and value.__module__ == module.name
            if is_answer and not value.__pydantic_generic_metadata__["parameters"]:
                yield value
    yield from (Page[Job], Page[Stamped], Stamped, Reports, DatasetInspection, ModelInspection)


def example(annotation: Any, *, word: str | None = None) -> Any:
    """Make JSON of a type. word: stands in place of every fixed word."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Spec:
        return SPEC
    if origin is Annotated:
        lowest = next((each.ge for each in arguments[1:] if isinstance(each, Ge)), None)
        return example(arguments[0], word=word) if lowest is None else lowest
    if origin is Literal:
        return word if word and isinstance(arguments[0], str) else arguments[0]
    if origin in (Union, UnionType):
        return example(next(each for each in arguments if each is not NoneType), word=word)
    if origin in (list, tuple):
        return [example(each, word=word) for each in arguments if each is not ...]
    if origin is dict:
        return {example(arguments[0], word=word): example(arguments[1], word=word)}
    if issubclass(annotation, BaseModel):
        return example_of(annotation, word=word)
    return {str: "x", int: 1, float: 0.5, bool: True, datetime: datetime.now(UTC).isoformat()}.get(annotation, {})


def example_of(kind: type[BaseModel], *, word: str | None = None) -> dict[str, Any]:
    return {field.alias or name: example(_whole(field), word=word) for name, field in kind.model_fields.items()}


def _whole(field: FieldInfo) -> Any:
    """The annotation as it was written: pydantic takes Annotated apart."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def with_unknown_fields(shown: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Add a field to an object and to the objects that are fields of it."""
    found = {FUTURE: [FUTURE]} | shown
    for name, field in kind.model_fields.items():
        is_union = get_origin(field.annotation) in (Union, UnionType)
        for inner in get_args(field.annotation) if is_union else (field.annotation,):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(shown.get(name), dict):
                found[name] = with_unknown_fields(shown[name], inner)
    return found


def is_nullable(annotation: Any) -> bool:
    return NoneType in get_args(annotation)


each_answer = pytest.mark.parametrize("kind", [*answers()], ids=lambda kind: kind.__name__)


@each_answer
def test_answer_of_this_version_is_read_as_it_is(kind: type[BaseModel]) -> None:
    shown = example_of(kind)
    assert read(kind, json.dumps(shown)).model_dump(mode="json") == kind.model_validate(shown).model_dump(mode="json")


@each_answer
def test_unknown_fields_are_ignored(kind: type[BaseModel]) -> None:
    shown = example_of(kind)
    assert read(kind, json.dumps(with_unknown_fields(shown, kind))) == read(kind, json.dumps(shown))


@each_answer
def test_unknown_words_are_kept(kind: type[BaseModel]) -> None:
    shown = example_of(kind, word=FUTURE)
    found = read(kind, json.dumps(shown))
    for name, field in kind.model_fields.items():
        if get_origin(field.annotation) is Literal and isinstance(get_args(field.annotation)[0], str):
            assert getattr(found, name) == FUTURE


@each_answer
def test_nullable_fields_that_are_missing_are_null(kind: type[BaseModel]) -> None:
    nullable = {name for name, field in kind.model_fields.items() if is_nullable(field.annotation)}
    shown = {name: value for name, value in example_of(kind).items() if name not in nullable}
    found = read(kind, json.dumps(shown))
    assert {name: getattr(found, name) for name in nullable} == dict.fromkeys(nullable)


@each_answer
def test_answer_without_a_needed_field_is_unreadable(kind: type[BaseModel]) -> None:
    needed = [name for name, field in kind.model_fields.items() if field.is_required()]
    for name in [each for each in needed if not is_nullable(kind.model_fields[each].annotation)][:1]:
        shown = {other: value for other, value in example_of(kind).items() if other != name}
        with pytest.raises(Unreadable, match=kind.__name__.partition("[")[0]):
            read(kind, json.dumps(shown))
