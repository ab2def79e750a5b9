"""`temper keys` and `temper projects`: API keys, and the projects they belong to."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.output import Output, connect, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.schemas.access import NewApiKey

keys = typer.Typer(no_args_is_help=True, help="List, make and revoke API keys.")
projects = typer.Typer(
    no_args_is_help=True, help="List, make, rename and delete projects; takes a key with the scope admin."
)

ProjectId = Annotated[str | None, typer.Option("--project", help="Of another project than the key's.")]
ProjectName = Annotated[str, typer.Argument(help="A label for people.")]


@keys.command("list")
def list_keys(project: ProjectId = None, output: Output = "text") -> None:
    """List API keys, newest first."""
    from client.display.access import keys_table

    with connect() as temper:
        found = list(temper.keys.list(project=project))
    show(found, keys_table, output)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="A label for people.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="jobs:read, jobs:write, files:write or admin; repeat it. By default all of yours but admin."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Days until the key expires.")] = None,
    project: ProjectId = None,
    output: Output = "text",
) -> None:
    """Make an API key and show it, only now."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    with connect() as temper:
        made = temper.keys.create(name, scopes=scope or [], expires_at=expires_at, project=project)
    show(made, _secret, output)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    descendants: Annotated[
        bool, typer.Option("--descendants", help="Also revoke every key that was made with it, for a leaked key.")
    ] = False,
    output: Output = "text",
) -> None:
    """Revoke an API key, which is final."""
    with connect() as temper:
        key = temper.keys.revoke(key_id, descendants=descendants)
    what = " with all keys that were made with it" if descendants else "; keys that were made with it stay valid"
    show(key, lambda key: f"{key.id} ({key.prefix}) is revoked{what}", output)


@projects.command("list")
def list_projects(output: Output = "text") -> None:
    """List projects, newest first."""
    from client.display.access import projects_table

    with connect() as temper:
        found = list(temper.projects.list())
    show(found, projects_table, output)


@projects.command("create")
def create_project(name: ProjectName, output: Output = "text") -> None:
    """Make a project."""
    with connect() as temper:
        made = temper.projects.create(name)
    show(made, lambda made: f"{made.id}; make a key for it with: temper keys create NAME --project {made.id}", output)


@projects.command("rename")
def rename_project(
    project_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    name: ProjectName,
    output: Output = "text",
) -> None:
    """Give a project another name."""
    with connect() as temper:
        changed = temper.projects.update(project_id, name=name)
    show(changed, lambda changed: f"{changed.id} is called {changed.name}", output)


@projects.command("delete")
def delete_project(
    project_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before all that it has is deleted.")] = False,
    output: Output = "text",
) -> None:
    """Delete a project with its jobs, files, webhooks and keys, after it has said what there is."""
    from client.errors import Refused

    with connect() as temper:
        try:
            temper.projects.delete(project_id, confirm=yes)
        except Refused as refusal:
            if refusal.problem.code != "project_not_empty":
                raise
            typer.echo(f"{project_id}: {str(refusal).partition(';')[0]}", err=True)
            typer.confirm("Delete it with all of that?", abort=True, err=True)
            temper.projects.delete(project_id, confirm=True)
    show({"deleted": project_id}, lambda _: f"{project_id} is deleted", output)


def _secret(key: "NewApiKey") -> "RenderableType":
    return (
        f"{key.secret}\nshown only now; its scopes: {' '.join(key.scopes)}; revoke it with: temper keys revoke {key.id}"
    )
