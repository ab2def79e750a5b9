"""`temper usage` and `temper quotas`: what a project has used, and its limits."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from client.cli.output import Output, connect, show

_DAY = ["%Y-%m-%d"]


def usage(
    since: Annotated[
        datetime | None,
        typer.Option("--from", formats=_DAY, help="First day, in UTC; by default the first of this month."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=_DAY, help="The day after the last one, in UTC; by default now.")
    ] = None,
    by: Annotated[
        Literal["day", "month", "kind", "dataset", "base_model"] | None, typer.Option(help="Group the time by this.")
    ] = None,
    output: Output = "text",
) -> None:
    """Show what the project has used: jobs, worker time, GPU time, bytes."""
    from client.display.access import usage_card

    with connect() as temper:
        days = {"since": since and since.replace(tzinfo=UTC), "until": until and until.replace(tzinfo=UTC)}
        found = temper.usage(**days, group_by=by)
    show(found, usage_card, output)


def quotas(
    project: Annotated[str | None, typer.Option(help="A project other than the key's; needs the scope admin.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="QUOTA=LIMIT",
            help="Set a limit for --project, as in --set running_jobs=2; none restores the default.",
        ),
    ] = None,
    output: Output = "text",
) -> None:
    """Show the quotas of a project and what it uses of each."""
    from client.display.access import quotas_table

    limits = dict(map(_read, changes or []))
    if limits and project is None:
        raise typer.BadParameter("--set changes the quotas of a named project: add --project ID")
    with connect() as temper:
        if limits and project:
            temper.projects.update(project, quotas=limits)
        found = temper.projects.quotas(project)
    show(found, quotas_table, output)


def _read(change: str) -> tuple[str, int | None]:
    quota, sign, limit = change.partition("=")
    if not sign or not (limit == "none" or limit.isdecimal()):
        raise typer.BadParameter(f"--set {change}: write QUOTA=LIMIT, for example --set running_jobs=2")
    return quota, None if limit == "none" else int(limit)
