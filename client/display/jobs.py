"""Jobs and attempts."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.schemas.assets import Lineage
from app.schemas.attempts import Attempt
from app.schemas.estimates import Actual, Estimate
from app.schemas.jobs import DryRun, Job, PostedJob, ShardState
from client.display.reports import accuracies, percent
from client.display.screen import STYLES, duration, table_of


def jobs_table(jobs: Iterable[Job]) -> RenderableType:
    """Show jobs, one per line."""
    table = table_of("id", "name", "kind", "status", "created", "union")
    for job in jobs:
        union = percent(job.results.after.union) if job.results and job.results.after else ""
        created = f"{job.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(job.id, escape(job.name), job.kind, status_text(job), created, union)
    return table


def posted_lines(job: PostedJob) -> Iterator[str]:
    """Describe a job that was created, and show the secret of a new webhook."""
    yield f"{job.id} is {job.status}; follow it with: temper watch {job.id}"
    if job.webhook:
        yield escape(f"{job.webhook.url} receives its events, as {job.webhook.id}, signed with the secret")
        yield f"{job.webhook.secret} (shown only now)"


def job_card(job: Job) -> RenderableType:
    """Show one job with its results or the reason of its failure."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("job", job.id)
    if job.name:
        facts.add_row("name", escape(job.name))
    facts.add_row("status", status_text(job))
    if job.waiting:
        facts.add_row("waits", escape(job.waiting.message))
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
    for warning in job.warnings:
        facts.add_row("warning", escape(warning.text))
    if job.results is None:
        return facts
    results, protocol = job.results, job.spec["evaluation"]["protocol"]
    return Group(facts, "", accuracies(results.before, results.after, job.spec["eps"], protocol))


def deletion_lines(job: Job, lineage: Lineage) -> Iterator[str]:
    """Say what is lost when a job is deleted, and what was made of its results."""
    name = f" ({job.name})" if job.name else ""
    parts = "its checkpoints, report and logs" if job.checkpoint else "its logs"
    yield f"{job.id}{name} is {job.status}; {parts} are deleted with it"
    for each in lineage.dependents:
        name = f" ({each.name})" if each.name else ""
        yield f"  {each.object} {each.id}{name} depends on it: it stays, and its origin is lost"


def dry_run_card(answer: DryRun) -> RenderableType:
    """Show the job that a request would create."""
    warnings = [f"warning: {escape(warning.text)}" for warning in answer.warnings]
    estimate = f"estimate: {escape(estimate_line(answer.estimate))}"
    return Group(Text(json.dumps(answer.spec, indent=2)), *warnings, estimate, "valid; nothing was stored")


def estimate_line(estimate: Estimate) -> str:
    """Write the expected cost of a job in a line, with the basis of the estimate."""
    if estimate.seconds is None:
        return f"none: {estimate.unavailable_reason}"
    jobs = "1 such job" if estimate.runs == 1 else f"{estimate.runs} such jobs"
    source = jobs if estimate.basis == "history" else jobs.replace("such", "other") + " of the network"
    times = f"{duration(estimate.seconds.p50)}, 9 in 10 up to {duration(estimate.seconds.p90)}"
    return ", ".join([times, *_bytes(estimate.peak_memory_bytes, estimate.storage_bytes), f"by {source}"])


def shards_line(shards: Sequence[ShardState]) -> str:
    """Count the shards of an evaluation by status, in a line."""
    counts = Counter(shard.status for shard in shards)
    return ", ".join(f"{count} {escape(status)}" for status, count in counts.items())


def actual_line(actual: Actual) -> str:
    """Write the actual cost of a job in a line."""
    return ", ".join([duration(actual.seconds), *_bytes(actual.peak_memory_bytes, actual.storage_bytes)])


def attempts_table(attempts: Iterable[Attempt]) -> RenderableType:
    """Show the attempts at a job, one per line."""
    table = table_of("attempt", "worker", "device", "started", "ended", "outcome", "from step", "cause")
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


def status_text(job: Job) -> Text:
    """Show the status and phase of a job."""
    doing = f" ({job.phase})" if job.phase and not job.is_terminal else ""
    return Text(job.status + doing, style=STYLES.get(job.status, ""))


def _bytes(memory: int | None, stored: int | None) -> list[str]:
    sizes = {"of memory": memory, "to store": stored}
    return [f"{size / 1e6:,.1f} MB {what}" for what, size in sizes.items() if size]


def _in_short(spec: Mapping[str, Any]) -> str:
    subject = spec.get("base_model") or spec.get("architecture")
    plural = "" if spec.get("epochs") == 1 else "s"
    training = f" by {spec['method']['name']}, {spec['epochs']} epoch{plural}" if "method" in spec else ""
    return f"{spec['kind']} {subject} on {spec['dataset']}{training}"
