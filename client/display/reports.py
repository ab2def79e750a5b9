"""Accuracies before and after a job, with their intervals."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape

from app.schemas.jobs import Result
from client.display.screen import table_of
from core.schema.catalog import NORMS, Norm
from core.schema.progress import Rate

if TYPE_CHECKING:
    from core.schema.report import Report, Reports


def report_card(reports: "Reports") -> RenderableType:
    """Show the evaluations of a job, their flags, and what the run warned of."""
    warnings = [f"[yellow]warning: {escape(warning.text)}" for warning in reports.warnings]
    described = reports.after or reports.before
    if described is None:
        return Group("nothing was evaluated", *warnings)
    return Group(accuracies(reports.before, reports.after, described.eps, described.protocol), *warnings)


def accuracies(
    before: "Result | Report | None", after: "Result | Report | None", eps: Mapping[Norm, float], protocol: str
) -> RenderableType:
    """Show the accuracies of a job, and the flags of its evaluations."""
    flags = [
        f"[yellow]{label}: {escape(f'{flag.threat}: ' if flag.threat else '')}{escape(flag.message)}"
        for label, result in (("before", before), ("after", after))
        if result
        for flag in result.flags
    ]
    return Group(accuracy_table(before, after, eps, protocol), *flags)


def accuracy_table(
    before: "Result | Report | None", after: "Result | Report | None", eps: Mapping[Norm, float], protocol: str
) -> RenderableType:
    """Show accuracies in percent with their 95 % intervals: before, after, and the change in points."""
    shown = {name: result for name, result in {"before": before, "after": after}.items() if result}
    total = next(iter(shown.values())).clean.total
    table = table_of("", *shown, *(["change"] if len(shown) > 1 else []), right=True)
    for label, rates in _rows(shown.values(), eps):
        change = [_change(rates[0], rates[-1])] if len(rates) > 1 else []
        table.add_row(label, *map(_with_interval, rates), *change, style="bold" if label == "union" else "")
    return Group(f"accuracy in % on {total} test points, protocol {protocol}, 95 % intervals", table)


def accuracies_line(result: Result) -> str:
    """Write the accuracies of an evaluation in a line."""
    rates = [("clean", result.clean), *result.robust.items(), ("union", result.union)]
    return ", ".join(f"{label} {percent(rate, unit=' %')}" for label, rate in rates)


def percent(rate: Rate, *, unit: str = "") -> str:
    """Write a share in percent, and whether it is not reliable."""
    return f"{100 * rate.value:.1f}{unit}{'' if rate.reliable else ' (not reliable)'}"


def _rows(results: "Iterable[Result | Report]", eps: Mapping[Norm, float]) -> Iterator[tuple[str, list[Rate]]]:
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
