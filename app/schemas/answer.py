"""What every answer shares: no field has a default, for an answer says everything, with null for what is not known."""

from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")


class Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_serialization_defaults_required=True)


def headers(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Describe the headers of an answer for the OpenAPI document."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in descriptions.items()}


class Listed(Answer):
    """Something that has an id."""

    id: str
    """What other routes and specs call it by. The ids of jobs and checkpoints sort by time of creation."""


ListedItem = TypeVar("ListedItem", bound=Listed)


class Page(Answer, Generic[Item]):
    """A part of a list. The next part is `?after=<last_id>`."""

    # Pydantic looks for attribute docstrings once for each kind of item, which takes longer than all else it does.
    model_config = ConfigDict(use_attribute_docstrings=False)

    object: Literal["list"] = Field(description="What this is.")
    data: list[Item] = Field(description="The items.")
    has_more: bool = Field(description="Whether there is a next part.")
    first_id: str | None = Field(description="The first item's id (an event's seq).")
    last_id: str | None = Field(description="The last item's id (an event's seq): the cursor of the next part.")


def page(items: list[ListedItem], *, has_more: bool) -> Page[ListedItem]:
    """Wrap a part of a list, with the ids of its ends."""
    first, last = (items[0].id, items[-1].id) if items else (None, None)
    return Page(object="list", data=items, has_more=has_more, first_id=first, last_id=last)
