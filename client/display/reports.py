"""Accuracies before and after a job, with their intervals."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape

from app.schemas.jobs import Result, UnseenResult
from client.display.screen import table_of
from core.schema.catalog import NORMS, Norm
from core.schema.progress import Rate

if TYPE_CHECKING:
    from core.schema.report import Report, Reports, UnseenReport, UnseenRow


def report_card(reports: "Reports") -> RenderableType:
    """Show the evaluations of a job, their flags, and what the run warned of."""
    warnings = [f"[yellow]warning: {escape(warning.text)}" for warning in reports.warnings]
    described = reports.after or reports.before
    if described is None:
        return Group("nothing was evaluated", *warnings)
    delivered = [f"delivered: {reports.delivered.text}"] if reports.delivered else []
    return Group(accuracies(reports.before, reports.after, described.eps, described.protocol), *delivered, *warnings)


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
        table.add_row(label, *map(_with_interval, rates), *_changes(rates), style="bold" if label == "union" else "")
    title = f"accuracy in % on {total} test points, protocol {protocol}, 95 % intervals"
    return Group(title, table, *_unseen_tables({name: result.unseen for name, result in shown.items()}))


def _unseen_tables(reports: "Mapping[str, UnseenResult | UnseenReport | None]") -> Iterator[RenderableType]:
    """Show accuracies under threats that no training prepares for: the attacks, then corruption by severity."""
    shown = {
        name: unseen if isinstance(unseen, UnseenResult) else UnseenResult.of(unseen)
        for name, unseen in reports.items()
        if unseen
    }
    if not shown:
        return
    table = table_of("unseen threat", *shown, *(["change"] if len(shown) > 1 else []), right=True)
    if any(unseen.common is not None for unseen in shown.values()):
        table.add_row("common corruptions", *(_share(unseen.common) for unseen in shown.values()))
    for label in next(iter(shown.values())).accuracy:
        rates = [unseen.accuracy[label] for unseen in shown.values()]
        table.add_row(label, *map(_with_interval, rates), *_changes(rates))
    averages = [unseen.average for unseen in shown.values()]
    if any(average is not None for average in averages):
        table.add_row("average", *map(_share, averages))
    unions = [unseen.union for unseen in shown.values() if unseen.union]
    if unions:
        table.add_row("union of attacks", *map(_with_interval, unions), *_changes(unions), style="bold")
    yield table
    for name, unseen in reports.items():
        if unseen and not isinstance(unseen, UnseenResult) and unseen.common:
            yield _corruption_table(name, unseen.rows, unseen.common.per_corruption)


def _corruption_table(name: str, rows: "Sequence[UnseenRow]", means: Mapping[str, float]) -> RenderableType:
    """Show the accuracy under each common corruption and severity."""
    rows = [row for row in rows if row.threat in means]
    severities = sorted({row.budget for row in rows})
    table = table_of(f"{name}: severity", *(f"{severity:g}" for severity in severities), "mean", right=True)
    found = {(row.threat, row.budget): row.accuracy for row in rows}
    for threat, mean in means.items():
        cells = [percent(found[threat, each]) if (threat, each) in found else "" for each in severities]
        table.add_row(threat, *cells, _share(mean))
    return table


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


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _changes(rates: Sequence[Rate]) -> list[str]:
    return [_change(rates[0], rates[-1])] if len(rates) > 1 else []


def _change(before: Rate, after: Rate) -> str:
    points = round(100 * (after.value - before.value), 1)
    style = "green" if points > 0 else "red" if points < 0 else "dim"
    return f"[{style}]{points:+.1f}[/{style}]"
