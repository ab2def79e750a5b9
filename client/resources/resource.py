"""Requests that the resources share: fetch, create, change, delete, and list page by page."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from app.schemas.answer import Page
from client.connection import Connection
from client.reading import Answer, read

Item = TypeVar("Item", bound=BaseModel)


class Resource:
    """A group of routes of the service. Every method may raise Unreachable, Unreadable, Refused and ServiceFailed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _get(self, kind: type[Answer], path: str, params: Mapping[str, str] | None = None) -> Answer:
        return read(kind, self._connection.request("GET", path, params=params).content)

    def _post(
        self, kind: type[Answer], path: str, body: Mapping[str, Any] | None = None, *, patience: float | None = None
    ) -> Answer:
        return read(kind, self._connection.request("POST", path, patience=patience, json=body).content)

    def _change(self, kind: type[Answer], path: str, changes: Mapping[str, Any]) -> Answer:
        """Change the fields that are not None."""
        body = {name: value for name, value in changes.items() if value is not None}
        return read(kind, self._connection.request("PATCH", path, json=body).content)

    def _delete(self, path: str) -> None:
        self._connection.request("DELETE", path)

    def _items(self, kind: type[Page[Item]], path: str, filters: Mapping[str, str] | None = None) -> Iterator[Item]:
        query = dict(filters or {})
        while True:
            page = self._get(kind, path, query)
            yield from page.data
            if not page.has_more or page.last_id is None:
                return
            query["after"] = page.last_id


def path_of(collection: str, identifier: str) -> str:
    """Return the path of one item, such as /jobs/job_1. The identifier stays one segment of the path."""
    return f"/{collection}/{quote(identifier, safe='')}"
