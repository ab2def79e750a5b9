"""Projects: whose things are whose. All of them are an admin's to manage."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field, StrictInt
from sqlalchemy.orm import Session

from app import schemas, tables
from app.http.authentication import TheCaller, needs
from app.http.body import Body
from app.http.dependencies import AnyProjectId, Json, Reading, TheService, Writing, cursor
from app.http.problems import (
    BodyTooLarge,
    InvalidBody,
    InvalidParameter,
    MalformedBody,
    NotFound,
    OwnProject,
    ProjectNotEmpty,
    UnsupportedMediaType,
    problems,
)
from app.platform.ids import is_id
from app.platform.paging import Order
from app.platform.settings import Settings
from app.projects import keys, quotas, removal
from core.schema.spec import Text

router = APIRouter(tags=["projects"], dependencies=[needs("admin")])

_BODY = (MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidBody)


class CreateProject(Body):
    """The project to create."""

    name: Text = Field(min_length=1, max_length=128, examples=["vision"])
    """A label for people."""


class UpdateProject(Body):
    """The fields to change; omitted fields stay as they are."""

    name: Text = Field(default_factory=str, min_length=1, max_length=128)
    """A label for people."""
    quotas: dict[schemas.Quota, Annotated[StrictInt, Field(ge=0, le=2**62)] | None] = Field(default={})
    """The project's own limits; null resets a limit to the instance's."""


@router.post("/projects", status_code=201, responses=problems(*_BODY), dependencies=[Json])
def create_project(body: CreateProject, session: Writing, response: Response) -> schemas.Project:
    """Create a project. It has no key yet: create one with POST /api_keys and its id."""
    project = keys.new_project(session, body.name)
    response.headers["Location"] = f"/projects/{project.id}"
    return show_project(project)


@router.get("/projects", responses=problems(InvalidParameter))
def list_projects(
    session: Reading,
    after: Annotated[
        str | None, AfterValidator(cursor("prj")), Query(description="The cursor: the `last_id` of the previous page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Projects in one page.")] = 20,
    order: Annotated[Order, Query(description="desc: newest first.")] = "desc",
) -> schemas.Page[schemas.Project]:
    """List the projects, newest first."""
    part = keys.list_projects(session, after=after, limit=limit, order=order)
    return schemas.page([show_project(project) for project in part.rows], has_more=part.has_more)


@router.get("/projects/{project_id}", responses=problems(NotFound))
def get_project(project_id: AnyProjectId, caller: TheCaller, session: Reading) -> schemas.Project:
    """Get a project."""
    return show_project(the_project(session, caller, project_id))


@router.patch("/projects/{project_id}", responses=problems(*_BODY, NotFound), dependencies=[Json])
def change_project(
    project_id: AnyProjectId, change: UpdateProject, caller: TheCaller, session: Writing, service: TheService
) -> schemas.Project:
    """Change the name or the quotas of a project."""
    project = the_project(session, caller, project_id)
    if "name" in change.model_fields_set:
        project.name = change.name
    quotas.change(session, project, change.quotas, service.settings)
    return show_project(project)


@router.delete("/projects/{project_id}", status_code=204, responses=problems(NotFound, ProjectNotEmpty, OwnProject))
def delete_project(
    project_id: AnyProjectId,
    caller: TheCaller,
    session: Writing,
    *,
    confirm: Annotated[bool, Query(description="Delete it with all that it has.")] = False,
) -> None:
    """Delete a project. One that has jobs, files, webhooks or keys is deleted with them only where that is confirmed:
    unfinished jobs are cancelled, and its keys are refused from now on. Its rows and objects go in the background."""
    removal.remove(session, caller, the_project(session, caller, project_id), confirmed=confirm)


@router.get("/projects/{project_id}/quotas", responses=problems(NotFound))
def get_quotas(
    project_id: AnyProjectId, caller: TheCaller, session: Reading, service: TheService
) -> list[schemas.QuotaState]:
    """Get the quotas of a project and their current use."""
    return show_quotas(session, the_project(session, caller, project_id), service.settings)


def the_project(session: Session, caller: keys.Caller, project_id: str) -> tables.Project:
    """Find a project that the caller may know of. Raises NotFound."""
    project = keys.find_project(session, caller, project_id) if is_id("prj", project_id) else None
    if project is None:
        raise NotFound(f"there is no project {project_id!r} that this key manages")
    return project


def show_project(project: tables.Project) -> schemas.Project:
    """Show a project."""
    return schemas.Project(
        id=project.id, object="project", name=project.name, created_at=project.created_at, quotas=project.quotas
    )


def show_quotas(session: Session, project: tables.Project, settings: Settings) -> list[schemas.QuotaState]:
    """Show what a project may have, and has."""
    return [
        schemas.QuotaState(
            quota=quota,
            limit=quotas.limit_of(project, quota, settings),
            used=quotas.used(session, project, quota),
        )
        for quota in schemas.QUOTAS
    ]
