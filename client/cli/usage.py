"""`temper usage` and `temper quotas`: what a project has used, and what it may have."""

from datetime import datetime
from typing import Annotated, Literal

import typer

from client import display
from client.output import Output, show
from client.temper import Temper

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def usage(
    since: Annotated[
        datetime | None,
        typer.Option("--from", formats=_FORMATS, help="From when on, local time; by default the first of this month."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=_FORMATS, help="Until when; by default now.")
    ] = None,
    by: Annotated[
        Literal["day", "month", "kind", "dataset", "base_model"] | None, typer.Option(help="Divide the time by this.")
    ] = None,
    output: Output = "text",
) -> None:
    """Show what the project has used: jobs, worker time, GPU time, bytes."""
    with Temper() as temper:
        found = temper.usage(since=since, until=until, group_by=by)
    show(found, display.usage_card(found), output)


def quotas(
    project: Annotated[
        str | None, typer.Option(help="Of another project than the key's; takes the scope admin.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="QUOTA=LIMIT",
            help="Give --project a limit of its own, as in --set running_jobs=2; none takes it back.",
        ),
    ] = None,
    output: Output = "text",
) -> None:
    """Show what a project may have, and has."""
    wishes = dict(map(_read, changes or []))
    if wishes and project is None:
        raise typer.BadParameter("--set changes a project that is named: add --project ID")
    with Temper() as temper:
        if wishes and project:
            temper.change_project(project, quotas=wishes)
        found = temper.quotas(project=project)
    show(found, display.quotas_table(found), output)


def _read(change: str) -> tuple[str, int | None]:
    quota, sign, limit = change.partition("=")
    if not sign or not (limit == "none" or limit.isdecimal()):
        raise typer.BadParameter(f"--set {change}: write QUOTA=LIMIT, for example --set running_jobs=2")
    return quota, None if limit == "none" else int(limit)
