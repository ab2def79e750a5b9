"""API keys: make, list and revoke them."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from app.schemas.access import ApiKey, NewApiKey
from app.schemas.answer import Page
from client.reading import read
from client.resources.resource import Resource, path_of


class Keys(Resource):
    """The API keys of a project: `temper.keys`."""

    def list(self, *, project: str | None = None) -> Iterator[ApiKey]:
        """Iterate over the API keys of a project, by default the key's own, newest first."""
        return self._items(Page[ApiKey], "/api_keys", {"project_id": project} if project else None)

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] = (),
        expires_at: datetime | None = None,
        project: str | None = None,
    ) -> NewApiKey:
        """Make an API key, by default with all scopes of this key except admin. Only this answer contains the
        secret."""
        body = {
            "name": name,
            "scopes": [*scopes] or None,
            "project_id": project,
            "expires_at": expires_at.astimezone().isoformat() if expires_at else None,
        }
        # Not repeated: a request whose answer was lost must not leave a second key behind.
        return self._post(NewApiKey, "/api_keys", body, patience=0)

    def revoke(self, key_id: str, *, descendants: bool = False) -> ApiKey:
        """Revoke a key, which is final; with `descendants`, also every key that was made with it, recursively."""
        params = {"descendants": "true"} if descendants else None
        return read(ApiKey, self._connection.request("DELETE", path_of("api_keys", key_id), params=params).content)
