"""The base of every answer: all fields are required and unknown ones are refused; null stands for what is not known.

The service builds answers as strictly as that. `client.reading` reads the same classes tolerantly: it ignores unknown
fields and keeps unknown statuses and codes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from core.schema.record import Record

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

Item = TypeVar("Item")


class Answer(Record):
    """Part of an answer of the API."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: "GetJsonSchemaHandler") -> "JsonSchemaValue":
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        # Clients that are made from the document must accept the fields of later versions.
        schema.pop("additionalProperties", None)
        return schema


def headers(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Describe the headers of an answer for the OpenAPI document."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in descriptions.items()}


class Listed(Answer):
    """An answer with an id."""

    id: str
    """The id that other routes and specs take. The ids of jobs and checkpoints sort by time of creation."""


ListedItem = TypeVar("ListedItem", bound=Listed)


class Page(Answer, Generic[Item]):
    """A page of a list. The next page is `?after=<last_id>`. A page of a list with several filters can be short, or
    empty, and still have more after it."""

    object: Literal["list"]
    """Type of the object."""
    data: list[Item]
    """The items."""
    has_more: bool
    """Whether there is a next page."""
    first_id: str | None
    """Id of the first item; of an event, its seq."""
    last_id: str | None
    """The cursor of the next page: the id of the last item, or of a later one that did not match; of an event, its
    seq."""


def page(items: list[ListedItem], *, has_more: bool, last: str | int | None = None) -> Page[ListedItem]:
    """Make a page of a list, with the id of its first item and the cursor of the next page.

    last: that cursor, where it is not the id of the last item: rows that a filter has left out come after it.
    """
    first = items[0].id if items else None
    return Page(
        object="list",
        data=items,
        has_more=has_more,
        first_id=first,
        last_id=str(last or items[-1].id) if items or last else None,
    )
