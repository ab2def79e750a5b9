"""Commands that run and check an instance of the service: serve, api, worker, migrate, doctor, version."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from client.cli.output import Output, connect, show
from client.errors import TemperError

Host = Annotated[
    str, typer.Option(envvar="TEMPER_HOST", help="Address to listen on; the default is this machine only.")
]
LogOutput = Annotated[
    Literal["text", "json"] | None,
    typer.Option(help="How it logs: text for people, json for programs; by default as TEMPER_LOG_FORMAT says."),
]
Port = Annotated[int, typer.Option(envvar="TEMPER_PORT", min=1, max=65535, help="Port to listen on.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8765,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for all data; by default TEMPER_DATA_DIR or ~/.temper.")
    ] = None,
    output: LogOutput = None,
) -> None:
    """Run the service here: the API and one worker, until Ctrl-C."""
    from client.cli.serve import serve_until_stopped

    _set_log_format(output)
    serve_until_stopped(host=host, port=port, folder=data_dir)


def api(host: Host = "127.0.0.1", port: Port = 8765, output: LogOutput = None) -> None:
    """Run the API alone, as on a server. All other settings come from the environment."""
    from client.cli.serve import become

    _set_log_format(output)
    become("app", host=host, port=port)


def worker(output: LogOutput = None) -> None:
    """Run a worker alone: woken by the broker that TEMPER_BROKER_URL names, or polling."""
    from client.cli.serve import become

    _set_log_format(output)
    become("worker.main", extra="worker")


def migrate(output: LogOutput = None) -> None:
    """Migrate the database to this version, and make the first API key if there is none."""
    from client.cli.serve import become

    _set_log_format(output)
    become("app.operations.migrate")


def recount(output: LogOutput = None) -> None:
    """Compare the totals of usage and quotas with the rows that they count, and correct them."""
    from client.cli.serve import become

    _set_log_format(output)
    become("app.operations.recount")


def _set_log_format(output: str | None) -> None:
    if output:
        os.environ["TEMPER_LOG_FORMAT"] = "json" if output == "json" else "console"


def doctor(output: Output = "text") -> None:
    """Check everything that an instance here depends on. Exit with 1 if a check fails."""
    from client.cli.serve import become

    become("app.operations.doctor", *(["--json"] if output == "json" else []))


def version(output: Output = "text") -> None:
    """Show the versions of this command and of the service."""
    try:
        with connect() as temper:
            service, where = temper.version().version, temper.url
    except TemperError as error:
        service, where = None, str(error)
    versions = {"client": own_version(), "service": service}
    show(versions, lambda versions: f"client  {versions['client']}\nservice {service or 'none'} ({where})", output)


def own_version() -> str:
    """Return the version of this installation; "source" if Temper is not installed."""
    from importlib import metadata

    try:
        return metadata.version("temper")
    except metadata.PackageNotFoundError:
        return "source"
