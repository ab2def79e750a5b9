"""Projects and their quotas."""

from collections.abc import Iterator, Mapping

from pydantic import RootModel

from app.schemas.access import Me, Project
from app.schemas.answer import Page
from app.schemas.usage import QuotaState
from client.resources.resource import Resource, path_of


class _QuotaStates(RootModel[list[QuotaState]]):
    pass


class Projects(Resource):
    """The projects of the instance: `temper.projects`. Takes a key with the scope admin, except for the quotas of the
    key's own project."""

    def list(self) -> Iterator[Project]:
        """Iterate over the projects, newest first."""
        return self._items(Page[Project], "/projects")

    def create(self, name: str) -> Project:
        """Make a project."""
        return self._post(Project, "/projects", {"name": name}, patience=0)

    def update(
        self, project_id: str, *, name: str | None = None, quotas: Mapping[str, int | None] | None = None
    ) -> Project:
        """Rename a project, or set its quotas; a quota of None restores the instance's default."""
        return self._change(Project, path_of("projects", project_id), {"name": name, "quotas": dict(quotas or {})})

    def delete(self, project_id: str, *, confirm: bool = False) -> None:
        """Delete a project. One that has anything is deleted only with `confirm`: else Refused says what it has."""
        path = path_of("projects", project_id)
        self._delete(f"{path}?confirm=true" if confirm else path)

    def quotas(self, project_id: str | None = None) -> tuple[QuotaState, ...]:
        """Return the quotas of a project, by default the key's own, and what it uses of each."""
        if project_id is None:
            return tuple(self._get(Me, "/me").quotas)
        return tuple(self._get(_QuotaStates, f"{path_of('projects', project_id)}/quotas").root)
