"""Events and inspections as lines of text for a terminal."""

import textwrap
from collections.abc import Iterator, Sequence

from core.schema.catalog import NORMS
from core.schema.events import (
    Attacked,
    Entered,
    Evaluated,
    Event,
    Failed,
    Finished,
    Monitored,
    MonitoredAverage,
    Paused,
    Resumed,
    Saved,
    Started,
    Stepped,
    Warned,
)
from core.schema.inspection_report import DatasetInspection, ModelInspection
from core.schema.preprocessing import as_options
from core.schema.report import Report, UnseenReport


def event_lines(event: Event) -> Iterator[str]:
    """Describe an event; of the training steps, only about twenty in all."""
    match event:
        case Started():
            yield f"{event.spec.kind} on {event.spec.dataset}: {event.architecture}, {event.parameters:,} parameters"
            extra = f" (and {event.extra_examples:,} extra)" if event.extra_examples else ""
            images = f"{event.train_examples:,} training{extra} and {event.test_examples:,} test images"
            yield f"  {images}, on {event.device}"
            if event.unread:
                yield f"  {event.unread:,} files of the data are not read"
        case Entered():
            yield event.phase + (f" ({event.subject})" if event.subject else "")
        case Stepped() if event.step % max(event.total_steps // 20, 1) == 0 or event.step == event.total_steps:
            yield (
                f"  epoch {event.epoch:5.2f}  step {event.step}/{event.total_steps}  loss {event.loss:.4f}"
                f"  {_attacked(event):4}  lr {event.learning_rate:.2g}  {event.seconds:.0f} s"
            )
        case Resumed():
            epoch = f" (epoch {event.epoch:.2f})" if event.epoch else ""
            yield f"resumes after step {event.step}{epoch}"
        case Monitored():
            yield f"  held out: {_rates(event)}  (fast, {event.examples} images, per cent)"
            if event.averaged:
                yield f"  averaged: {_rates(event.averaged)}"
        case Attacked():
            share = event.robust / event.examples
            yield f"  {event.threat:4} {event.attack:8} {share:6.1%} robust  ({event.done}/{event.total})"
        case Evaluated():
            yield from (
                f"  flag: {f'{flag.threat}: ' if flag.threat else ''}{flag.message}" for flag in event.report.flags
            )
        case Saved() if event.kind in ("checkpoint", "report"):
            yield f"  {event.kind}: {event.path} ({event.size:,} bytes, sha256 {event.sha256})"
        case Warned():
            yield f"warning: {event.text}"
        case Paused():
            yield f"paused after step {event.step}; run the same command to resume"
        case Finished():
            before, after = event.reports.before, event.reports.after
            yield from table({"before": before, "after": after} if before else {"model": after})
            if event.reports.delivered:
                yield f"delivered: {event.reports.delivered.text}"
            yield f"done in {event.seconds:.0f} s"
        case Failed():
            yield f"failed: {f'{event.field}: ' if event.field else ''}{event.message}"
            yield f"  {event.hint}"


def _rates(monitored: Monitored | MonitoredAverage) -> str:
    norms = "  ".join(f"{norm} {100 * share:.1f}" for norm, share in monitored.robust.items())
    return f"{norms}  union {100 * monitored.union.value:.1f}"


def _attacked(event: Stepped) -> str:
    if event.norm:
        return event.norm
    return "+".join(event.counts) if event.counts else "-"


def table(reports: dict[str, Report | None]) -> Iterator[str]:
    """Lay out accuracies in per cent, a row per report, the union with its 95 % interval."""
    rows = {name: report for name, report in reports.items() if report}
    norms = [norm for norm in NORMS if any(norm in report.eps for report in rows.values())]
    yield "".join([f"{'':8}", *(f"{name:>8}" for name in ("clean", *norms, "union")), "   95 % interval"])
    for name, report in rows.items():
        rates = [report.clean, *(report.robust[norm] for norm in norms), report.union]
        cells = "".join(f"{100 * rate.value:8.1f}" for rate in rates)
        yield f"{name:8}{cells}   {100 * report.union.low:.1f} to {100 * report.union.high:.1f}"
    for name, report in rows.items():
        numbers = {"clean": report.clean, **report.robust, "union": report.union}
        if doubted := [row for row, rate in numbers.items() if not rate.reliable]:
            yield f"{name}: {', '.join(doubted)} not reliable; the flags say why"
    if rows:
        report = next(reversed(rows.values()))
        yield f"{report.protocol} protocol, {report.examples} test points, per cent"
    yield from _unseen_table({name: report.unseen for name, report in rows.items() if report.unseen})


def _unseen_table(reports: dict[str, UnseenReport]) -> Iterator[str]:
    """Lay out accuracies in per cent under threats that no training prepares for, a row per threat and budget."""
    if not reports:
        return
    yield "".join([f"{'unseen threat':20}", *(f"{name:>8}" for name in reports)])
    columns = [dict(_unseen_rows(unseen)) for unseen in reports.values()]
    for label in columns[0]:
        cells = (column.get(label) for column in columns)
        yield f"{label:20}" + "".join(f"{'-' if share is None else f'{100 * share:.1f}':>8}" for share in cells)
    provenance = next(iter(reports.values())).provenance
    if provenance:
        yield from textwrap.wrap(f"preset {next(iter(reports.values())).preset}: {provenance}", 100)


def _unseen_rows(unseen: UnseenReport) -> Iterator[tuple[str, float]]:
    if unseen.common and unseen.common.mean is not None:
        yield "common corruptions", unseen.common.mean
    elif unseen.common:
        yield from unseen.common.per_corruption.items()
    if unseen.common and unseen.common.mce is not None:
        yield "mCE", unseen.common.mce
    yield from ((row.id, row.accuracy.value) for row in unseen.attack_rows)
    if unseen.average is not None and unseen.union:
        yield "average", unseen.average
        yield "union of attacks", unseen.union.value


def other_weights_lines(key: str, others: Sequence[str]) -> Iterator[str]:
    """Say which weights of a file with several were taken, and how to take the others."""
    if others:
        yield f"  took the weights under {key or 'no key'}; the file has others: add --key {' or --key '.join(others)}"


def inspection_lines(found: DatasetInspection | ModelInspection) -> Iterator[str]:
    """Describe the report of an inspection."""
    sizes = f"images {' x '.join(map(str, found.shape))}"
    if isinstance(found, ModelInspection):
        recognised = ", recognised by the weights" if found.recognised else ""
        yield f"{found.architecture}{recognised}: {found.parameters:,} parameters, {sizes}, {found.classes} classes"
        yield from other_weights_lines(found.key, found.other_keys)
        if found.alternatives:
            yield (
                f"  its weights do not tell it from {', '.join(found.alternatives)}: if it is one of these, its "
                "accuracy is low; add --architecture NAME"
            )
        yield from (f"  warning ({warning.code}): {warning.text}" for warning in found.warnings)
        return
    yield f"{len(found.classes)} classes, {sizes}, stored as {found.format}"
    yield from _size_lines(found)
    held_out = f", {found.held_out_examples:,} held-out" if found.held_out_examples else ""
    drawn = f", {found.test_share:.0%} of each class drawn for testing" if found.test_share else ""
    yield f"  {found.train_examples:,} training{held_out} and {found.test_examples:,} test images{drawn}"
    for reason, count in found.refused_by_reason.items():
        yield f"  {count:,} images are refused: {reason}"
    for reason, count in found.unread_by_reason.items():
        yield f"  {count:,} files are not read: {reason}"
    for part, doubles in found.repeated.items():
        if doubles.count:
            twins = doubles.examples[0]
            yield f"  {doubles.count:,} {part} images are repeated: {twins.name} is {twins.twin}"
    for warning in found.warnings:
        yield f"  warning ({warning.code}): {warning.text}"


def _size_lines(found: DatasetInspection) -> Iterator[str]:
    """Describe the sizes of the images in their files, where they differ, and how they are brought to one."""
    if found.sizes.different > 1:
        ends = [f"to {each.below - 1}" if each.below else "or more" for each in found.sizes.histogram]
        bins = [
            f"{each.at_least} {end}: {each.images:,}" for each, end in zip(found.sizes.histogram, ends, strict=True)
        ]
        yield f"  images by their shorter side in pixels: {', '.join(bins)}; median {found.sizes.median}"
    if found.preprocessing.image_size:
        yield f"  brought to {found.preprocessing.describe()}"
    if found.proposal:
        yield f"  to use all images, bring them to one size: {as_options(found.proposal)}"
