"""The commands of `temper`: each asks the service one thing and shows the answer, for people or for programs."""

import time
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from client import access, display, files, monitor, usage, webhooks
from client.errors import TemperError
from client.output import Output, console, show
from client.records import Job
from client.serve import become, serve_until_stopped
from client.temper import Temper
from core.schema.strict_json import read_json

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(access.keys, name="keys")
app.add_typer(access.projects, name="projects")
app.add_typer(files.datasets, name="datasets")
app.add_typer(files.models, name="models")
app.add_typer(webhooks.webhooks, name="webhooks")
app.command()(usage.usage)
app.command()(usage.quotas)

_STATUSES = "queued, running, pausing, paused, stopping, cancelling, succeeded, failed or cancelled"
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job, as submit and list show it.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"temper {_own_version()}")
        raise typer.Exit


@app.callback()
def temper(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make a robust image classifier robust to l_inf, l_2 and l_1 together."""


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(envvar="TEMPER_HOST", help="Address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TEMPER_PORT", min=1, max=65535, help="Port to listen on.")] = 8765,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept; by default TEMPER_DATA_DIR or ~/.temper.")
    ] = None,
) -> None:
    """Run the service here: the API and one worker, until Ctrl-C."""
    serve_until_stopped(host=host, port=port, folder=data_dir)


@app.command()
def api(
    host: Annotated[
        str, typer.Option(envvar="TEMPER_HOST", help="Address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TEMPER_PORT", min=1, max=65535, help="Port to listen on.")] = 8765,
) -> None:
    """Run the API alone, as on a server. Everything else comes from the environment."""
    become("app.main", host=host, port=port)


@app.command()
def worker() -> None:
    """Run a worker alone: woken by the broker that TEMPER_BROKER_URL names, or polling."""
    become("worker.main", extra="worker")


@app.command()
def migrate() -> None:
    """Bring the database to this version, and make the first API key where there is none."""
    become("app.operations.migrate")


@app.command()
def doctor(output: Output = "text") -> None:
    """Look at all that an instance here stands on. Exit with 1 where something fails."""
    become("app.operations.doctor", *(["--json"] if output == "json" else []))


@app.command()
def submit(
    spec: Annotated[typer.FileText, typer.Argument(metavar="SPEC.json", help="The job; - reads standard input.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the spec, as in --set evaluation.examples=100."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the spec and show it resolved.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the job live until it ends.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
    output: Output = "text",
) -> None:
    """Post a job. With --watch or --wait, exit with 0 only if it succeeds."""
    body = _read_spec(spec, changes or [])
    with Temper() as temper:
        if dry_run:
            answer = temper.submit(body, dry_run=True)
            show(answer, display.dry_run_card(answer), output)
            return
        job = temper.submit(body)
        if watch:
            _watch(temper, job.id, output)
        elif wait:
            _wait(temper, [job.id], None, output)
        else:
            show(job, "\n".join(display.posted_lines(job)), output)


@app.command()
def watch(job_id: JobId, output: Output = "text") -> None:
    """Show a job live until it ends. Exit with 0 only if it succeeds."""
    with Temper() as temper:
        _watch(temper, job_id, output)


@app.command()
def wait(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs.")],
    timeout: Annotated[float | None, typer.Option(min=0, help="Give up after so many seconds.")] = None,
    output: Output = "text",
) -> None:
    """Return when all these jobs have ended. Exit with 0 only if all have succeeded."""
    with Temper() as temper:
        _wait(temper, job_ids, timeout, output)


@app.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help=f"Only jobs in this status: {_STATUSES}.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only jobs on this data set.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Only jobs that start from this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    output: Output = "text",
) -> None:
    """List jobs, newest first."""
    given = {"status": status, "kind": kind, "dataset": dataset, "base_model": base_model}
    with Temper() as temper:
        found = temper.list(**{name: value for name, value in given.items() if value})
        jobs = list(islice(found, limit))
    show(jobs, display.jobs_table(jobs) if jobs else "no jobs", output)


@app.command()
def get(job_id: JobId, output: Output = "text") -> None:
    """Show a job as it stands."""
    with Temper() as temper:
        job = temper.get(job_id)
    show(job, display.job_card(job), output)


@app.command()
def events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    output: Output = "text",
) -> None:
    """Show what has happened to a job so far."""
    with Temper() as temper:
        for event in temper.stream(job_id) if follow else temper.events(job_id):
            show(event, display.event_line(event), output)


@app.command()
def cancel(job_id: JobId, output: Output = "text") -> None:
    """Cancel a job. What it has delivered stays."""
    with Temper() as temper:
        job = temper.cancel(job_id)
    show(job, f"{job.id} is {job.status}", output)


@app.command()
def pause(job_id: JobId, output: Output = "text") -> None:
    """Put a running job aside; resume goes on from there."""
    with Temper() as temper:
        job = temper.pause(job_id)
    show(job, f"{job.id} is {job.status}", output)


@app.command()
def resume(job_id: JobId, output: Output = "text") -> None:
    """Queue a paused job again."""
    with Temper() as temper:
        job = temper.resume(job_id)
    show(job, f"{job.id} is {job.status}", output)


@app.command()
def stop(job_id: JobId, output: Output = "text") -> None:
    """Have a running training deliver the best weights so far."""
    with Temper() as temper:
        job = temper.stop(job_id)
    show(job, f"{job.id} is {job.status}", output)


@app.command()
def retry(job_id: JobId, output: Output = "text") -> None:
    """Make a new job that goes on where a failed or cancelled one ended."""
    with Temper() as temper:
        job = temper.retry(job_id)
    show(job, f"{job.id} goes on where {job_id} ended, and is {job.status}", output)


@app.command()
def clone(
    job_id: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the spec, as in --set seed=1; null is the default."),
    ] = None,
    output: Output = "text",
) -> None:
    """Make a new job with the spec of another one, and changes."""
    overrides: dict[str, Any] = {}
    for change in changes or []:
        _set(overrides, change)
    with Temper() as temper:
        job = temper.clone(job_id, overrides)
    show(job, "\n".join(display.posted_lines(job)), output)


@app.command()
def delete(job_id: JobId) -> None:
    """Delete a job that has ended, with its checkpoints, report and logs."""
    with Temper() as temper:
        temper.delete(job_id)
    typer.echo(f"{job_id} is deleted")


@app.command()
def attempts(job_id: JobId, output: Output = "text") -> None:
    """List who has worked at a job, and what came of it."""
    with Temper() as temper:
        found = list(temper.attempts(job_id))
    show(found, display.attempts_table(found) if found else "no attempts yet", output)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only so many lines from the end.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; by default the last one.")] = None,
) -> None:
    """Show what a job's training process wrote, and what its supervisor did."""
    with Temper() as temper:
        for text in temper.logs(job_id, attempt=attempt, tail=tail, follow=follow):
            typer.echo(text, nl=False)


@app.command()
def report(job_id: JobId, output: Output = "text") -> None:
    """Show the table of a job: accuracy before and after, clean and under attack."""
    with Temper() as temper:
        reports = temper.report(job_id)
    show(reports, display.report_card(reports), output)


@app.command()
def download(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A checkpoint, or a job for its latest.")],
    path: Annotated[Path, typer.Option("-o", "--path", help="File or folder to write to.")] = Path(),
    output: Output = "text",
) -> None:
    """Download a checkpoint: one safetensors file that carries its spec and report."""
    with Temper() as temper:
        file = temper.download(identifier, path)
    size = file.stat().st_size
    show({"path": str(file), "size": size}, f"{file}, {size:,} bytes, sha256 checked", output)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to send.")],
    purpose: Annotated[Literal["dataset", "model"], typer.Option(help="What it is to become.")],
    name: Annotated[str | None, typer.Option(help="What to call it there; by default as here.")] = None,
    output: Output = "text",
) -> None:
    """Send a file, in parts, and wait until it is verified. The same command goes on where it was cut off."""
    with Temper() as temper, display.byte_bar() as on_progress:
        sent = temper.upload(file, purpose=purpose, name=name, on_progress=on_progress)
    show(sent, f"{sent.id} is {sent.status}: {sent.filename}, {sent.bytes:,} bytes, sha256 checked", output)


@app.command()
def methods(output: Output = "text") -> None:
    """List the training methods that a job can name."""
    with Temper() as temper:
        found = list(temper.methods())
    show(found, display.methods_table(found), output)


@app.command()
def version(output: Output = "text") -> None:
    """Show the versions of this command and of the service."""
    try:
        with Temper() as temper:
            service, where = temper.version().version, temper.url
    except TemperError as error:
        service, where = None, str(error)
    versions = {"client": _own_version(), "service": service}
    show(versions, f"client  {versions['client']}\nservice {service or 'none'} ({where})", output)


def _watch(temper: Temper, job_id: str, output: str) -> None:
    try:
        job = _print_events(temper, job_id) if output == "json" else _show_live(temper, job_id)
    except KeyboardInterrupt:
        typer.echo(
            f"Stopped watching; the job goes on.\n  temper watch {job_id}   watches it again\n"
            f"  temper cancel {job_id}  ends it",
            err=True,
        )
        raise typer.Exit(130) from None
    show(job, display.job_card(job), output)
    _exit_by([job])


def _show_live(temper: Temper, job_id: str) -> Job:
    console.print(f"{temper.get(job_id).id}; Ctrl-C stops watching, not the job")
    return monitor.watch(temper, job_id, console)


def _print_events(temper: Temper, job_id: str) -> Job:
    for event in temper.stream(job_id):
        typer.echo(event.model_dump_json(ensure_ascii=True))
    return temper.get(job_id)


def _wait(temper: Temper, job_ids: list[str], timeout: float | None, output: str) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    jobs = []
    for job_id in job_ids:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        jobs.append(temper.wait(job_id, timeout=left))
        show(jobs[-1], display.job_card(jobs[-1]), output)
    _exit_by(jobs)


def _exit_by(jobs: list[Job]) -> None:
    if any(job.status != "succeeded" for job in jobs):
        raise typer.Exit(1)


def _read_spec(file: typer.FileText, changes: list[str]) -> dict[str, Any]:
    try:
        spec = read_json(file.read())
    except ValueError as error:  # of which JSONDecodeError and UnicodeDecodeError are kinds
        raise typer.BadParameter(f"{file.name} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise typer.BadParameter(f'{file.name} is not one JSON object such as {{"base_model": "digits-cnn-linf"}}')
    for change in changes:
        _set(spec, change)
    return spec


def _set(spec: dict[str, Any], change: str) -> None:
    path, sign, text = change.partition("=")
    if not sign or not path:
        raise typer.BadParameter(f"--set {change}: write KEY=VALUE, for example --set epochs=1")
    *parents, last = path.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
        if not isinstance(spec, dict):
            raise typer.BadParameter(f"--set {change}: {parent} is not an object in the spec; set {parent} as a whole")
    try:
        spec[last] = read_json(text)
    except ValueError:
        spec[last] = text


def _own_version() -> str:
    try:
        return metadata.version("temper")
    except metadata.PackageNotFoundError:
        return "source"
