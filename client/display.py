"""What the command line shows, as rich renderables: pure functions of what the service answered; and the screen that
shows them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as BytesProgress
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from client.records import (
    Actual,
    ApiKey,
    Attempt,
    Dataset,
    Delivery,
    DryRun,
    Estimate,
    Job,
    Method,
    Model,
    Project,
    QuotaState,
    Result,
    Shard,
    Usage,
    Webhook,
)
from core.schema.catalog import NORMS, Norm
from core.schema.events import Stamped
from core.schema.report import Rate, Report, Reports

STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}

_SENTENCES = {
    "attacked": "{subject}: {attack} on {norm} leaves {robust} of {examples} points right ({done} of {total} attacks)",
    "shard": "{number} of {count} is {status}; {done} done",
    "saved": "{kind}, {size:,} bytes, sha256 {sha256}",
    "warned": "{message}",
    "failed": "{message} {hint}",
    "finished": "after {seconds:.1f} seconds",
}


# Of C0 and C1, only what ends a line or moves along it goes to a terminal as it is.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class Screen(Console):
    """A console on which no text can steer the terminal, because control characters are escaped, and on which no line
    of a table ends with blanks."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a string, escaped before it is measured."""
        return super().render_str(text.translate(_ESCAPES), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Make segments of anything; those that rich itself steers the terminal with are marked as such."""
        segments: Iterable[Segment] = super().render(renderable, options)
        for segment in _trimmed(segments) if isinstance(renderable, Table) else segments:
            yield segment if segment.control else segment._replace(text=segment.text.translate(_ESCAPES))


def jobs_table(jobs: Iterable[Job]) -> RenderableType:
    """Show many jobs, a line each."""
    table = _table("id", "name", "kind", "status", "created", "union")
    for job in jobs:
        union = percent(job.results.after.union) if job.results and job.results.after else ""
        created = f"{job.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(job.id, escape(job.name), job.kind, status_text(job), created, union)
    return table


def posted_lines(job: Job) -> Iterator[str]:
    """Say that a job was made."""
    yield f"{job.id} is {job.status}; follow it with: temper watch {job.id}"
    if job.webhook:
        yield escape(f"{job.webhook.url} is told of it, as {job.webhook.id}, signed with the secret")
        yield f"{job.webhook.secret} (shown only now)"


def job_card(job: Job) -> RenderableType:
    """Show one job, with its results or the reason of its failure."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("job", job.id)
    if job.name:
        facts.add_row("name", escape(job.name))
    facts.add_row("status", status_text(job))
    facts.add_row("does", escape(_in_short(job.spec)))
    if job.shards:
        facts.add_row("shards", shards_line(job.shards))
    if job.estimate:
        facts.add_row("estimate", escape(estimate_line(job.estimate)))
    if job.actual:
        facts.add_row("actual", actual_line(job.actual))
    if job.checkpoint:
        facts.add_row("checkpoint", job.checkpoint)
    if job.failure:
        facts.add_row("failure", escape(f"{job.failure.code}: {job.failure.message}"))
        facts.add_row("to do", escape(job.failure.hint))
    for caution in job.warnings:
        facts.add_row("caution", escape(caution.message))
    if job.results is None:
        return facts
    results, protocol = job.results, job.spec["evaluation"]["protocol"]
    return Group(facts, "", accuracy_table(results.before, results.after, job.spec["eps"], protocol))


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show how many bytes are done, on a terminal; elsewhere show nothing."""
    screen = Screen(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with BytesProgress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield advance


def dry_run_card(answer: DryRun) -> RenderableType:
    """Show what a job would be."""
    warnings = [f"caution: {escape(caution.message)}" for caution in answer.warnings]
    estimate = [f"estimate: {escape(estimate_line(answer.estimate))}"] if answer.estimate else []
    return Group(Text(json.dumps(answer.spec, indent=2)), *warnings, *estimate, "valid; nothing was stored")


def estimate_line(estimate: Estimate) -> str:
    """Say in a line what a job may take, and how that is known."""
    if estimate.seconds is None:
        return f"none: {estimate.unavailable_reason}"
    jobs = "1 such job" if estimate.runs == 1 else f"{estimate.runs} such jobs"
    source = jobs if estimate.basis == "history" else jobs.replace("such", "other") + " of the network"
    times = f"{_duration(estimate.seconds.p50)}, 9 in 10 up to {_duration(estimate.seconds.p90)}"
    return ", ".join([times, *_bytes(estimate.peak_memory_bytes, estimate.storage_bytes), f"by {source}"])


def shards_line(shards: Sequence[Shard]) -> str:
    """Say in a line how the shards of an evaluation fare."""
    counts = Counter(shard.status for shard in shards)
    return ", ".join(f"{count} {escape(status)}" for status, count in counts.items())


def actual_line(actual: Actual) -> str:
    """Say in a line what a job has taken."""
    return ", ".join([_duration(actual.seconds), *_bytes(actual.peak_memory_bytes, actual.storage_bytes)])


def report_card(reports: Reports) -> RenderableType:
    """Show the evaluations of a job, and what raises warnings about them."""
    shown = {"before": reports.before, "after": reports.after}
    flags = [
        f"[yellow]{label}: {escape(flag.message)}" for label, report in shown.items() if report for flag in report.flags
    ]
    described = reports.after or reports.before
    if described is None:
        return "nothing was evaluated"
    return Group(accuracy_table(reports.before, reports.after, described.eps, described.protocol), *flags)


def accuracy_table(
    before: Result | Report | None, after: Result | Report | None, eps: Mapping[Norm, float], protocol: str
) -> RenderableType:
    """Show accuracies in percent, with their 95 % intervals: before, after, and the change in points."""
    shown = {name: result for name, result in {"before": before, "after": after}.items() if result}
    total = next(iter(shown.values())).clean.total
    table = _table("", *shown, *(["change"] if len(shown) > 1 else []), right=True)
    for label, rates in _rows(shown.values(), eps):
        change = [_change(rates[0], rates[-1])] if len(rates) > 1 else []
        table.add_row(label, *map(_with_interval, rates), *change, style="bold" if label == "union" else "")
    return Group(f"accuracy in % on {total} test points, protocol {protocol}, 95 % intervals", table)


def attempts_table(attempts: Iterable[Attempt]) -> RenderableType:
    """Show who has worked at a job."""
    table = _table("attempt", "worker", "device", "began", "ended", "outcome", "from step", "cause")
    for attempt in attempts:
        table.add_row(
            str(attempt.number),
            attempt.worker,
            attempt.device or "",
            f"{attempt.started_at.astimezone():%Y-%m-%d %H:%M:%S}",
            f"{attempt.ended_at.astimezone():%H:%M:%S}" if attempt.ended_at else "",
            attempt.outcome or "running",
            "" if attempt.resumed_step is None else str(attempt.resumed_step),
            escape(attempt.cause or ""),
        )
    return table


def models_table(models: Iterable[Model]) -> RenderableType:
    """Show the base models."""
    table = _table("name", "network", "data set", "robust to", "description")
    for model in models:
        robust_to = f"{model.norm} {model.eps:g}" if model.norm and model.eps else ""
        name = escape(_named(model))
        table.add_row(name, model.architecture or "", model.dataset or "", robust_to, escape(model.description))
    return table


def datasets_table(datasets: Iterable[Dataset]) -> RenderableType:
    """Show the data sets."""
    table = _table("name", "images", "classes", "default eps", "description")
    for dataset in datasets:
        images = " x ".join(map(str, dataset.shape or ()))
        eps = ", ".join(f"{norm} {radius:.4g}" for norm, radius in dataset.eps.items())
        table.add_row(escape(_named(dataset)), images, str(dataset.classes or ""), eps, escape(dataset.description))
    return table


def _named(file: Dataset | Model) -> str:
    """A name, and how it stands where jobs cannot use it."""
    return file.name if file.status == "ready" else f"{file.name} ({file.status})"


def dataset_lines(dataset: Dataset) -> Iterator[str]:
    """Say what is in a data set."""
    yield escape(f"{dataset.name} is {dataset.status}: {dataset.description}")
    if dataset.failure:
        yield escape(f"  {dataset.failure.message}\n  {dataset.failure.hint}")
    if dataset.shape:
        yield f"  images {' x '.join(map(str, dataset.shape))}, {dataset.classes} classes"
        yield f"  {dataset.train_examples or 0:,} for training, {dataset.test_examples or 0:,} for testing"
    if dataset.refused:
        yield f"  {dataset.refused:,} images are refused, and no job sees them: the report says why"
    if dataset.overlap:
        yield f"  {dataset.overlap:,} test images are in the training part, too"


def model_lines(model: Model) -> Iterator[str]:
    """Say what a base model is."""
    yield escape(f"{model.name} is {model.status}: {model.description}")
    if model.failure:
        yield escape(f"  {model.failure.message}\n  {model.failure.hint}")
    if model.architecture and model.shape:
        images = f"images {' x '.join(map(str, model.shape))}, {model.classes} classes"
        yield f"  {model.architecture}, {images}"
    if model.norm and model.eps:
        yield f"  said to be robust to {model.norm} at {model.eps:.4g}"
    if model.sha256:
        yield f"  sha256 {model.sha256}"
    if model.made_by:
        yield f"  made by {model.made_by.job}, checkpoint {model.made_by.checkpoint}"
    if model.warnings:
        yield f"  doubtful: {', '.join(model.warnings)}; the report has the words"


def methods_table(methods: Iterable[Method]) -> RenderableType:
    """Show the training methods."""
    table = _table("name", "attacks by default", "description")
    for method in methods:
        norms = "the job says" if method.norms is None else ", ".join(method.norms) or "nothing"
        table.add_row(method.id, norms, escape(method.description))
    return table


def keys_table(keys: Iterable[ApiKey]) -> RenderableType:
    """Show the API keys of a project."""
    table = _table("id", "name", "begins with", "scopes", "last used", "state")
    for key in keys:
        used = f"{key.last_used_at.astimezone():%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        table.add_row(key.id, escape(key.name), key.prefix, " ".join(key.scopes), used, _state_of(key))
    return table


def projects_table(projects: Iterable[Project]) -> RenderableType:
    """Show projects."""
    table = _table("id", "name", "created")
    for project in projects:
        table.add_row(project.id, escape(project.name), f"{project.created_at.astimezone():%Y-%m-%d %H:%M}")
    return table


def webhooks_table(webhooks: Iterable[Webhook]) -> RenderableType:
    """Show who is told how jobs fare."""
    table = _table("id", "address", "events", "state", "description")
    for webhook in webhooks:
        told = " ".join(event.removeprefix("job.") for event in webhook.events) or "of jobs that name it"
        state = f"disabled ({webhook.disabled_reason})" if webhook.disabled else "enabled"
        table.add_row(webhook.id, escape(webhook.url), told, state, escape(webhook.description))
    return table


def deliveries_table(deliveries: Iterable[Delivery]) -> RenderableType:
    """Show what was sent to a webhook or is to be."""
    table = _table("id", "event", "job", "happened", "status", "attempts", "answer", "next attempt", "error")
    for delivery in deliveries:
        table.add_row(
            delivery.id,
            delivery.type,
            delivery.job_id or "",
            f"{delivery.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
            Text(delivery.status, style=STYLES.get(delivery.status, "")),
            str(delivery.attempts),
            str(delivery.response_status or ""),
            f"{delivery.next_attempt_at.astimezone():%H:%M:%S}" if delivery.next_attempt_at else "",
            escape(delivery.error or ""),
        )
    return table


def delivery_line(delivery: Delivery) -> str:
    """Say in a line what became of a message."""
    answer = f", answered {delivery.response_status}" if delivery.response_status and not delivery.error else ""
    error = f": {delivery.error}" if delivery.error else ""
    return escape(f"{delivery.id} ({delivery.type}) is {delivery.status}{answer}{error}")


def usage_card(usage: Usage) -> RenderableType:
    """Show what a project has used."""
    times = f"{usage.since.astimezone():%Y-%m-%d %H:%M} to {usage.until.astimezone():%Y-%m-%d %H:%M}"
    jobs = ", ".join(f"{count} {status}" for status, count in sorted(usage.jobs.items())) or "none"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("time", times)
    facts.add_row("jobs", jobs)
    facts.add_row("worker time", _duration(usage.worker_seconds))
    facts.add_row("GPU time", _duration(usage.gpu_seconds))
    facts.add_row("stored", f"{usage.stored_bytes / 1e6:,.1f} MB")
    if not usage.groups:
        return facts
    table = _table("", "jobs", "worker time", "GPU time", right=True)
    for each in usage.groups:
        row = str(each.jobs), _duration(each.worker_seconds), _duration(each.gpu_seconds)
        table.add_row(escape(each.group), *row)
    return Group(facts, "", table)


def quotas_table(quotas: Iterable[QuotaState]) -> RenderableType:
    """Show what a project may have, and has."""
    table = _table("quota", "used", "limit", right=True)
    for each in quotas:
        used = "" if each.used is None else f"{each.used:,.0f}"
        table.add_row(each.quota, used, "none" if each.limit is None else f"{each.limit:,}")
    return table


def event_line(event: Stamped) -> Text:
    """Show an event in a line."""
    time = f"{event.created_at.astimezone():%H:%M:%S}"
    return Text.assemble((f"{event.seq:>4}  {time}  ", "dim"), (f"{event.type:<15} ", "bold"), sentence(event))


def sentence(event: Stamped) -> str:
    """Say what an event tells."""
    data: dict[str, Any] = event.data
    match event.type:
        case "started":
            network = "{architecture} with {parameters:,} parameters on {device}".format_map(data)
            training = f"{data['train_examples']} images to train on, " if data["train_examples"] else ""
            return f"{network}; {training}{data['test_examples']} images to test on"
        case "entered":
            return f"{data['phase']} {data['subject']}" if data["subject"] else str(data["phase"])
        case "evaluated":
            return f"{data['subject']}: {_accuracies(Result.model_validate(data['report']))}"
        case "job.failed":
            failure: dict[str, Any] = data["failure"]
            return f"{failure['code']}: {failure['message']}"
        case known if known in _SENTENCES:
            return _SENTENCES[known].format_map(data)
        case _:
            return ", ".join(f"{key} {value}" for key, value in data.items() if value is not None)


def status_text(job: Job) -> Text:
    """Show where a job is in its life."""
    doing = f" ({job.phase})" if job.phase and not job.is_terminal else ""
    return Text(job.status + doing, style=STYLES.get(job.status, ""))


def percent(rate: Rate) -> str:
    """Write a share in percent."""
    return f"{100 * rate.value:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _bytes(memory: int | None, stored: int | None) -> list[str]:
    told = {"of memory": memory, "to store": stored}
    return [f"{size / 1e6:,.1f} MB {what}" for what, size in told.items() if size]


def _table(*columns: str, right: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if right and number else "left", overflow="fold")
    return table


def _trimmed(segments: Iterable[Segment]) -> Iterator[Segment]:
    for line in Segment.split_lines(segments):
        while line and not line[-1].text.strip():
            line.pop()
        yield from line[:-1]
        yield from (last._replace(text=last.text.rstrip()) for last in line[-1:])
        yield Segment.line()


def _state_of(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {key.revoked_at.astimezone():%Y-%m-%d}"
    return f"until {key.expires_at.astimezone():%Y-%m-%d %H:%M}" if key.expires_at else "valid"


def _rows(results: Iterable[Result | Report], eps: Mapping[Norm, float]) -> Iterator[tuple[str, list[Rate]]]:
    results = list(results)
    yield "clean", [result.clean for result in results]
    for norm in NORMS:
        if norm in eps:
            yield f"{norm} {eps[norm]:.4g}", [result.robust[norm] for result in results]
    yield "union", [result.union for result in results]


def _with_interval(rate: Rate) -> str:
    return f"{percent(rate)} [dim]{100 * rate.low:5.1f} to {100 * rate.high:5.1f}[/dim]"


def _change(before: Rate, after: Rate) -> str:
    points = round(100 * (after.value - before.value), 1)
    style = "green" if points > 0 else "red" if points < 0 else "dim"
    return f"[{style}]{points:+.1f}[/{style}]"


def _accuracies(result: Result) -> str:
    rates = [("clean", result.clean), *result.robust.items(), ("union", result.union)]
    return ", ".join(f"{label} {percent(rate)} %" for label, rate in rates)


def _in_short(spec: Mapping[str, Any]) -> str:
    subject = spec.get("base_model") or spec.get("architecture")
    plural = "" if spec.get("epochs") == 1 else "s"
    training = f" by {spec['method']['name']}, {spec['epochs']} epoch{plural}" if "method" in spec else ""
    return f"{spec['kind']} {subject} on {spec['dataset']}{training}"
