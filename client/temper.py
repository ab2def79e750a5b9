"""Client of a Temper service: its resources as attributes, on one connection."""

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Self

from client.connection import Connection
from client.credentials import find_credentials
from client.resources.resource import Resource

if TYPE_CHECKING:
    from app.schemas.access import Me
    from app.schemas.service import Version
    from app.schemas.usage import Usage
    from app.schemas.workers import Worker
    from client.resources.assets import Datasets, Methods, Models, Threats
    from client.resources.checkpoints import Checkpoints
    from client.resources.jobs import Jobs
    from client.resources.keys import Keys
    from client.resources.projects import Projects
    from client.resources.uploads import Uploads
    from client.resources.webhooks import Webhooks


class Temper(Resource):
    """A Temper service.

    url and api_key: address of the service and a key for it; by default TEMPER_URL and TEMPER_API_KEY, else those that
    the service on this machine stored. timeout: seconds to wait for one answer. patience: seconds to go on retrying
    while the service is unavailable; at least a minute for downloads and uploads, and 15 minutes while following or
    waiting for a job, which outlasts an upgrade of the service. tell: called with a line when an outage lasts, and
    when it is over.
    Every method may raise Unreachable, Unreadable, Refused and ServiceFailed; the constructor may raise NoKey.

    A resource is imported when it is first used, which keeps commands that need one of them fast.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 3.0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(Connection(find_credentials(url, api_key), timeout=timeout, patience=patience, tell=tell))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._connection.url

    @cached_property
    def jobs(self) -> "Jobs":
        """Jobs: submit, follow, cancel, retry, fetch results."""
        from client.resources.jobs import Jobs

        return Jobs(self._connection)

    @cached_property
    def checkpoints(self) -> "Checkpoints":
        """Checkpoints of jobs: list and download."""
        from client.resources.checkpoints import Checkpoints

        return Checkpoints(self._connection)

    @cached_property
    def datasets(self) -> "Datasets":
        """Data sets: list, add, remove."""
        from client.resources.assets import Datasets

        return Datasets(self._connection)

    @cached_property
    def models(self) -> "Models":
        """Base models: list, add, remove."""
        from client.resources.assets import Models

        return Models(self._connection)

    @cached_property
    def methods(self) -> "Methods":
        """Training methods: list."""
        from client.resources.assets import Methods

        return Methods(self._connection)

    @cached_property
    def threats(self) -> "Threats":
        """Threats that no training prepares for: list."""
        from client.resources.assets import Threats

        return Threats(self._connection)

    @cached_property
    def uploads(self) -> "Uploads":
        """Uploads: send a file."""
        from client.resources.uploads import Uploads

        return Uploads(self._connection)

    @cached_property
    def webhooks(self) -> "Webhooks":
        """Webhooks: add, test, list deliveries."""
        from client.resources.webhooks import Webhooks

        return Webhooks(self._connection)

    @cached_property
    def keys(self) -> "Keys":
        """API keys: create, list, revoke."""
        from client.resources.keys import Keys

        return Keys(self._connection)

    @cached_property
    def projects(self) -> "Projects":
        """Projects: create, rename, set quotas."""
        from client.resources.projects import Projects

        return Projects(self._connection)

    def me(self) -> "Me":
        """Fetch the project, key and scopes of this client."""
        from app.schemas.access import Me

        return self._get(Me, "/me")

    def usage(
        self, *, since: datetime | None = None, until: datetime | None = None, group_by: str | None = None
    ) -> "Usage":
        """Fetch the usage of the project from one day to before another, by default in this month. Both are begins of
        days in UTC.

        group_by: day, month, kind, dataset or base_model.
        """
        from app.schemas.usage import Usage

        moments = {"from": since and since.astimezone().isoformat(), "to": until and until.astimezone().isoformat()}
        given = {**moments, "group_by": group_by}
        return self._get(Usage, "/usage", {name: value for name, value in given.items() if value})

    def workers(self) -> "Iterator[Worker]":
        """Iterate over the workers of the instance, those that started last first. Takes a key with the scope admin."""
        from app.schemas.answer import Page
        from app.schemas.workers import Worker

        return self._items(Page[Worker], "/workers")

    def version(self) -> "Version":
        """Fetch the version of the service."""
        from app.schemas.service import Version

        return self._get(Version, "/version")
