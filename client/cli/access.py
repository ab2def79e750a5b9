"""`temper keys` and `temper projects`: who may ask the service for what."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from client import display
from client.output import Output, show
from client.temper import Temper

keys = typer.Typer(no_args_is_help=True, help="List, make and revoke API keys.")
projects = typer.Typer(no_args_is_help=True, help="List, make and rename projects; takes a key with the scope admin.")

ProjectId = Annotated[str | None, typer.Option("--project", help="Of another project than the key's.")]


@keys.command("list")
def list_keys(project: ProjectId = None, output: Output = "text") -> None:
    """List API keys, newest first."""
    with Temper() as temper:
        found = list(temper.keys(project=project))
    show(found, display.keys_table(found), output)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What people will know it by.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="jobs:read, jobs:write, files:write or admin; repeat it. By default all of yours but admin."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Valid for so many days.")] = None,
    project: ProjectId = None,
    output: Output = "text",
) -> None:
    """Make an API key and show it, this once."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    with Temper() as temper:
        made = temper.create_key(name, scopes=scope or [], expires_at=expires_at, project=project)
    scopes = " ".join(made.scopes)
    show(made, f"{made.secret}\nshown only now; it may {scopes}; temper keys revoke {made.id} ends it", output)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    descendants: Annotated[
        bool, typer.Option("--descendants", help="And all keys that were made with it, and with those: it has leaked.")
    ] = False,
    output: Output = "text",
) -> None:
    """Have an API key refused from now on, for good."""
    with Temper() as temper:
        key = temper.revoke_key(key_id, descendants=descendants)
    what = " with all keys that were made with it" if descendants else "; keys that were made with it stay valid"
    show(key, f"{key.id} ({key.prefix}) is revoked{what}", output)


@projects.command("list")
def list_projects(output: Output = "text") -> None:
    """List projects, newest first."""
    with Temper() as temper:
        found = list(temper.projects())
    show(found, display.projects_table(found), output)


@projects.command("create")
def create_project(
    name: Annotated[str, typer.Argument(help="What people will know it by.")], output: Output = "text"
) -> None:
    """Make a project."""
    with Temper() as temper:
        made = temper.create_project(name)
    show(made, f"{made.id}; make a key to it with: temper keys create NAME --project {made.id}", output)


@projects.command("rename")
def rename_project(
    project_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    name: Annotated[str, typer.Argument(help="What people will know it by.")],
    output: Output = "text",
) -> None:
    """Give a project another name."""
    with Temper() as temper:
        changed = temper.change_project(project_id, name=name)
    show(changed, f"{changed.id} is called {changed.name}", output)
