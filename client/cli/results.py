"""Commands that show or download what a job has produced: events, logs, attempts, report, checkpoint."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cli.jobs import JobId
from client.cli.output import Output, Timeout, connect, show

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")]


def events(job_id: JobId, follow: Follow = False, timeout: Timeout = None, output: Output = "text") -> None:
    """Show the events of a job so far."""
    from client.display.events import event_line

    with connect() as temper:
        job_id = temper.jobs.id_of(job_id)
        for event in temper.jobs.stream(job_id, timeout=timeout) if follow else temper.jobs.events(job_id):
            show(event, event_line, output)


def logs(
    job_id: JobId,
    follow: Follow = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only this number of lines from the end.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; by default the last one.")] = None,
    timeout: Timeout = None,
    output: Output = "text",
) -> None:
    """Show the log of a job's training process and of its worker. As JSON, each line is a string."""
    with connect() as temper:
        job_id = temper.jobs.id_of(job_id)
        pieces = temper.jobs.logs(job_id, attempt=attempt, tail=tail, follow=follow, timeout=timeout)
        if output == "json":
            for line in _lines(pieces):
                typer.echo(json.dumps(line))
            return
        for text in pieces:
            typer.echo(text, nl=False)


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Put pieces of text together to lines."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest


def attempts(job_id: JobId, output: Output = "text") -> None:
    """List the attempts at a job and their outcomes."""
    from client.display.jobs import attempts_table

    with connect() as temper:
        found = list(temper.jobs.attempts(temper.jobs.id_of(job_id)))
    show(found, lambda found: attempts_table(found) if found else "no attempts yet", output)


def report(job_id: JobId, output: Output = "text") -> None:
    """Show the table of a job: accuracy before and after, clean and under attack."""
    from client.display.reports import report_card

    with connect() as temper:
        reports = temper.jobs.report(temper.jobs.id_of(job_id))
    show(reports, report_card, output)


def download(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A checkpoint's id; or a job, for its latest one.")],
    path: Annotated[Path, typer.Option("-o", "--path", help="File or folder to write to.")] = Path(),
    output: Output = "text",
) -> None:
    """Download a checkpoint: one safetensors file that contains its spec and report."""
    with connect() as temper:
        named = identifier if identifier.startswith("ckpt_") else temper.jobs.id_of(identifier)
        file = temper.checkpoints.download(named, path)
    written: dict[str, Any] = {"path": str(file), "size": file.stat().st_size}
    show(written, lambda written: f"{file}, {written['size']:,} bytes, sha256 checked", output)
