"""The `temper` command with its sub-commands, in the groups of `temper --help`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from client.cli import access, assets, jobs, operate, results, usage, webhooks, workers
from core.schema.exit_status import table_lines

RUN, LOOK, FILES, ACCESS, OPERATE = "Run jobs", "Look", "Files", "Access", "Operate"

Command = Callable[..., None]

COMMANDS: dict[str, dict[str, Command]] = {
    RUN: {
        "submit": jobs.submit,
        "wait": jobs.wait,
        "pause": jobs.pause,
        "resume": jobs.resume,
        "stop": jobs.stop,
        "cancel": jobs.cancel,
        "retry": jobs.retry,
        "clone": jobs.clone,
        "delete": jobs.delete,
    },
    LOOK: {
        "list": jobs.list_jobs,
        "get": jobs.get,
        "watch": jobs.watch,
        "events": results.events,
        "logs": results.logs,
        "attempts": results.attempts,
        "report": results.report,
        "methods": assets.methods,
        "threats": assets.threats,
    },
    FILES: {"download": results.download, "upload": assets.upload},
    ACCESS: {"usage": usage.usage, "quotas": usage.quotas},
    OPERATE: {
        "serve": operate.serve,
        "api": operate.api,
        "worker": operate.worker,
        "migrate": operate.migrate,
        "recount": operate.recount,
        "workers": workers.workers,
        "doctor": operate.doctor,
        "version": operate.version,
    },
}
GROUPS: dict[str, dict[str, typer.Typer]] = {
    FILES: {"datasets": assets.datasets, "models": assets.models},
    ACCESS: {"keys": access.keys, "projects": access.projects, "webhooks": webhooks.webhooks},
}


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"temper {operate.own_version()}")
        raise typer.Exit


def temper(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make a robust image classifier robust to l_inf, l_2 and l_1 together."""


def _build() -> typer.Typer:
    options: dict[str, Any] = {"no_args_is_help": True, "pretty_exceptions_enable": False, "add_completion": False}
    epilog = "\n\n".join(["Exit statuses:", *table_lines()])
    app = typer.Typer(callback=temper, epilog=epilog, **options)
    for panel, commands in COMMANDS.items():
        for name, command in commands.items():
            app.command(name, rich_help_panel=panel)(command)
    for panel, groups in GROUPS.items():
        for name, group in groups.items():
            app.add_typer(group, name=name, rich_help_panel=panel)
    return app


app = _build()
