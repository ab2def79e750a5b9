"""Commands that submit, list and control jobs."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from app.schemas.status import Status
from client.cli.output import Output, Timeout, connect, console, show
from client.errors import StillRunning
from core.schema.exit_status import ExitStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.schemas.jobs import DryRun, Job, PostedJob
    from client.temper import Temper

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id; its name, if no other job has it; or latest.")]


def submit(
    spec: Annotated[typer.FileText, typer.Argument(metavar="SPEC.json", help="The job; - reads standard input.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the spec, as in --set evaluation.examples=100."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only validate the spec and show it resolved.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the job live until it ends.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
    timeout: Timeout = None,
    output: Output = "text",
) -> None:
    """Post a job. With --watch or --wait, exit with 0 only if it succeeds."""
    if timeout is not None and not (watch or wait):
        raise typer.BadParameter("--timeout limits the wait for the job: add --watch or --wait")
    body = _read_spec(spec, changes or [])
    with connect() as temper:
        if dry_run:
            show(temper.jobs.submit(body, dry_run=True), _dry_run, output)
            return
        job = temper.jobs.submit(body)
        if watch:
            _watch(temper, job.id, timeout, output)
        elif wait:
            _wait(temper, [job.id], timeout, output)
        else:
            show(job, _posted, output)


def watch(job_id: JobId, timeout: Timeout = None, output: Output = "text") -> None:
    """Show a job live until it ends. Exit with 0 only if it succeeds."""
    with connect() as temper:
        _watch(temper, temper.jobs.id_of(job_id), timeout, output)


def wait(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB...", help="The jobs, each as for get.")],
    timeout: Timeout = None,
    output: Output = "text",
) -> None:
    """Return when all these jobs have ended. Exit with 0 only if all have succeeded."""
    with connect() as temper:
        _wait(temper, [temper.jobs.id_of(each) for each in job_ids], timeout, output)


def list_jobs(
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    status: Annotated[
        str | None, typer.Option(help=f"Only jobs in this status: {', '.join(get_args(Status))}.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only jobs on this data set.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Only jobs that start from this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this number of jobs.")] = 20,
    output: Output = "text",
) -> None:
    """List jobs, newest first."""
    given = {"name": name, "status": status, "kind": kind, "dataset": dataset, "base_model": base_model}
    with connect() as temper:
        found = temper.jobs.list(**{name: value for name, value in given.items() if value})
        jobs = list(islice(found, limit))
    show(jobs, _table, output)


def _on_job(act: "Callable[[Temper, str], Job]", as_text: "Callable[[Job], RenderableType]", text: str) -> Any:
    """Make a command that does one thing to a job and shows the job."""

    def command(job_id: JobId, output: Output = "text") -> None:
        with connect() as temper:
            job = act(temper, temper.jobs.id_of(job_id))
        show(job, as_text, output)

    command.__doc__ = text
    return command


def _card(job: "Job") -> "RenderableType":
    from client.display.jobs import job_card

    return job_card(job)


def _status(job: "Job") -> "RenderableType":
    return f"{job.id} is {job.status}"


get = _on_job(lambda temper, job: temper.jobs.get(job), _card, "Show a job.")
pause = _on_job(
    lambda temper, job: temper.jobs.pause(job),
    _status,
    "Have a running job save its state and free its worker; resume continues it.",
)
resume = _on_job(lambda temper, job: temper.jobs.resume(job), _status, "Queue a paused job again.")
stop = _on_job(
    lambda temper, job: temper.jobs.stop(job), _status, "Have a running training deliver the best weights so far."
)
cancel = _on_job(
    lambda temper, job: temper.jobs.cancel(job), _status, "Cancel a job. The checkpoints it has delivered remain."
)
retry = _on_job(
    lambda temper, job: temper.jobs.retry(job),
    lambda job: f"{job.id} resumes {job.retry_of}, and is {job.status}",
    "Make a new job that resumes from the last state of a failed or cancelled one.",
)


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
    with connect() as temper:
        job = temper.jobs.clone(temper.jobs.id_of(job_id), overrides)
    show(job, _posted, output)


def delete(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete it without asking.")] = False,
    output: Output = "text",
) -> None:
    """Delete a job that has ended, with its checkpoints, report and logs. Say first what depends on it, and ask."""
    from client.display.jobs import deletion_lines

    with connect() as temper:
        job = temper.jobs.get(temper.jobs.id_of(job_id))
        if not yes:
            _ask(*deletion_lines(job, temper.jobs.lineage(job.id)))
        temper.jobs.delete(job.id)
    show({"deleted": job.id}, lambda _: f"{job.id} is deleted", output)


def _ask(*lines: str) -> None:
    """Ask whether to go on; without a terminal to ask on, demand --yes."""
    for line in lines:
        typer.echo(line, err=True)
    if not sys.stdin.isatty():
        typer.echo("there is no terminal to ask on: add --yes to delete it", err=True)
        raise typer.Exit(ExitStatus.BAD_REQUEST)
    typer.confirm("Delete it?", abort=True, err=True)


def _watch(temper: "Temper", job_id: str, timeout: float | None, output: str) -> None:
    follow = _print_events if output == "json" else _show_live
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with suppress(StillRunning):
            follow(temper, job_id, timeout)
        # Not get: the service may go away after the last event. At the end of the time, this says whether it is paused.
        job = temper.jobs.wait(job_id, timeout=_left(end))
    except KeyboardInterrupt:
        typer.echo(
            f"Stopped watching; the job goes on.\n  temper watch {job_id}   watches it again\n"
            f"  temper cancel {job_id}  ends it",
            err=True,
        )
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    show(job, _card, output)
    _exit_by([job])


def _show_live(temper: "Temper", job_id: str, timeout: float | None) -> None:
    from client.display import live

    console().print(f"{temper.jobs.get(job_id).id}; Ctrl-C stops watching, not the job")
    live.watch(temper, job_id, console(), timeout=timeout)


def _print_events(temper: "Temper", job_id: str, timeout: float | None) -> None:
    for event in temper.jobs.stream(job_id, timeout=timeout):
        typer.echo(event.model_dump_json(ensure_ascii=True))


def _wait(temper: "Temper", job_ids: list[str], timeout: float | None, output: str) -> None:
    end = None if timeout is None else time.monotonic() + timeout
    jobs = []
    for job_id in job_ids:
        jobs.append(temper.jobs.wait(job_id, timeout=_left(end)))
        show(jobs[-1], _card, output)
    _exit_by(jobs)


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _exit_by(jobs: "list[Job]") -> None:
    if any(job.status != "succeeded" for job in jobs):
        raise typer.Exit(ExitStatus.FAILED)


def _read_spec(file: typer.FileText, changes: list[str]) -> dict[str, Any]:
    from core.schema.strict_json import read_json

    try:
        spec = read_json(file.read())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are subclasses
        raise typer.BadParameter(f"{file.name} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise typer.BadParameter(f'{file.name} is not one JSON object such as {{"base_model": "digits-cnn-linf"}}')
    for change in changes:
        _set(spec, change)
    return spec


def _set(spec: dict[str, Any], change: str) -> None:
    from core.schema.overrides import NotAnObject, override, read_value

    path, sign, text = change.partition("=")
    if not sign or not path:
        raise typer.BadParameter(f"--set {change}: write KEY=VALUE, for example --set epochs=1")
    try:
        override(spec, path, read_value(text))
    except NotAnObject as error:
        raise typer.BadParameter(f"--set {change}: {error}; set {error.field} as a whole") from error


def _table(jobs: "list[Job]") -> "RenderableType":
    from client.display.jobs import jobs_table

    return jobs_table(jobs) if jobs else "no jobs"


def _posted(job: "PostedJob") -> "RenderableType":
    from client.display.jobs import posted_lines

    return "\n".join(posted_lines(job))


def _dry_run(answer: "DryRun") -> "RenderableType":
    from client.display.jobs import dry_run_card

    return dry_run_card(answer)
