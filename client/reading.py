"""Reading of answers, tolerant of newer and older services.

The classes of `app.schemas` are exact, because the service writes them. A client must also understand the next version,
so `read` ignores unknown fields, keeps unknown statuses and codes as they are, and takes null for a field that may be
null and is missing.
"""

from copy import copy
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model

from client.errors import Unreadable

Answer = TypeVar("Answer", bound=BaseModel)


def read(kind: type[Answer], body: str | bytes) -> Answer:
    """Read a JSON answer as an instance of `kind`. Raises Unreadable."""
    try:
        answer: Answer = tolerant(kind).model_validate_json(body, extra="ignore")
    except ValidationError as error:
        raise Unreadable(
            f"the answer cannot be read as Temper's {kind.__name__}: does TEMPER_URL name a Temper service?"
        ) from error
    return answer


@cache
def tolerant(kind: type[Answer]) -> type[Answer]:
    """Derive a class that accepts any text for fixed words, and null for a nullable field that is missing."""
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        annotation = _widened(field.annotation)
        is_optional = field.is_required() and NoneType in get_args(annotation)
        if annotation != field.annotation or is_optional:
            default = copy(field)
            if is_optional:
                default.default = None
            fields[name] = annotation, default
    return create_model(kind.__name__, __base__=kind, __module__=kind.__module__, **fields) if fields else kind


def _widened(annotation: Any) -> Any:
    """Replace fixed words by str, and classes of answers by their tolerant versions."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return reduce(or_, {type(value) for value in arguments})
    if origin in (Union, UnionType):
        return reduce(or_, map(_widened, arguments))
    if origin in (list, dict, tuple):
        return origin[tuple(each if each is ... else _widened(each) for each in arguments)]
    if isinstance(annotation, type) and origin is None and issubclass(annotation, BaseModel):
        return tolerant(annotation)
    return annotation
