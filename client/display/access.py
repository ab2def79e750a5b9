"""API keys, projects, quotas and usage."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from app.schemas.access import ApiKey, Project
from app.schemas.usage import QuotaState, Usage
from client.display.screen import duration, table_of


def keys_table(keys: Iterable[ApiKey]) -> RenderableType:
    """Show API keys, one per line."""
    table = table_of("id", "name", "begins with", "scopes", "last used", "state")
    for key in keys:
        used = f"{key.last_used_at.astimezone():%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        table.add_row(key.id, escape(key.name), key.prefix, " ".join(key.scopes), used, _state_of(key))
    return table


def projects_table(projects: Iterable[Project]) -> RenderableType:
    """Show projects, one per line."""
    table = table_of("id", "name", "created")
    for project in projects:
        table.add_row(project.id, escape(project.name), f"{project.created_at.astimezone():%Y-%m-%d %H:%M}")
    return table


def quotas_table(quotas: Iterable[QuotaState]) -> RenderableType:
    """Show the quotas of a project and what it uses of each."""
    table = table_of("quota", "used", "limit", right=True)
    for each in quotas:
        used = "" if each.used is None else f"{each.used:,.0f}"
        table.add_row(each.quota, used, "none" if each.limit is None else f"{each.limit:,}")
    return table


def usage_card(usage: Usage) -> RenderableType:
    """Show the usage of a project."""
    period = f"{usage.since.astimezone():%Y-%m-%d %H:%M} to {usage.until.astimezone():%Y-%m-%d %H:%M}"
    jobs = ", ".join(f"{count} {status}" for status, count in sorted(usage.jobs.items())) or "none"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("time", period)
    facts.add_row("jobs", jobs)
    facts.add_row("worker time", duration(usage.worker_seconds))
    facts.add_row("GPU time", duration(usage.gpu_seconds))
    facts.add_row("stored", f"{usage.stored_bytes / 1e6:,.1f} MB")
    if not usage.groups:
        return facts
    table = table_of("", "jobs", "worker time", "GPU time", right=True)
    for each in usage.groups:
        row = str(each.jobs), duration(each.worker_seconds), duration(each.gpu_seconds)
        table.add_row(escape(each.group), *row)
    return Group(facts, "", table)


def _state_of(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {key.revoked_at.astimezone():%Y-%m-%d}"
    return f"until {key.expires_at.astimezone():%Y-%m-%d %H:%M}" if key.expires_at else "valid"
