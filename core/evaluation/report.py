"""From predictions per point to a report, and from the reports of shards to that of the whole evaluation."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from core.checkpoint import verdict_versions
from core.evaluation.checks import OF_RESULTS, Finding, flags_of_results, flags_of_unseen
from core.evaluation.rates import rate
from core.evaluation.row import sum_records
from core.evaluation.unseen_report import merge_unseen
from core.schema.catalog import Norm
from core.schema.errors import BadInput
from core.schema.progress import Flag, add_warnings
from core.schema.protocols import Engine, Protocol
from core.schema.report import AttackRecord, Part, Points, Report, Reports, UnseenReport


def record_points(images: Tensor, labels: Tensor, predicted: Mapping[str, Tensor]) -> Points:
    """Record what is known per point.

    images (points, channels, height, width) in [0, 1]; labels (points,); predicted: classes (points,) under `clean` and
    each threat id, in the order of the rows.
    """
    return Points(
        ids=tuple(chain.from_iterable(map(_ids, images.split(256)))),
        labels=tuple(labels.tolist()),
        predicted={row: tuple(classes.tolist()) for row, classes in predicted.items()},
    )


def _ids(images: Tensor) -> list[str]:
    pixels = images.to("cpu", torch.float32).numpy()
    return [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in pixels]


def make_report(
    *,
    protocol: Protocol,
    engine: Engine,
    seed: int,
    batch_size: int,
    eps: dict[Norm, float],
    points: Points,
    records: Sequence[AttackRecord],
    flags: Iterable[Flag],
    seconds: float,
    unseen: UnseenReport | None = None,
    part: Part | None = None,
) -> Report:
    """Sum up predictions per point. A point counts for the union if it is right in every row."""
    right = {
        row: [answer == label for answer, label in zip(classes, points.labels, strict=True)]
        for row, classes in points.predicted.items()
    }
    right["union"] = [all(rows) for rows in zip(*right.values(), strict=True)]
    total = len(points.labels)
    findings = list(flags_of_results(points, records))
    doubted = _rows_in_doubt(findings, tuple(right))
    rates = {
        row: rate(sum(verdicts), total).model_copy(update={"reliable": row not in doubted})
        for row, verdicts in right.items()
    }
    robust = {row: rates[row] for row in rates if row not in ("clean", "union")}
    return Report(
        protocol=protocol,
        engine=engine,
        examples=total,
        seed=seed,
        batch_size=batch_size,
        eps=eps,
        clean=rates["clean"],
        robust=robust,
        union=rates["union"],
        average=sum(row.count for row in robust.values()) / (len(robust) * total),
        attacks=tuple(records),
        flags=(*flags, *(finding.flag for finding in findings), *(flags_of_unseen(unseen, total) if unseen else ())),
        verdicts={row: "".join("01"[verdict] for verdict in verdicts) for row, verdicts in right.items()},
        points=points,
        unseen=unseen,
        seconds=seconds,
        part=part,
    )


def _rows_in_doubt(findings: Iterable[Finding], rows: tuple[str, ...]) -> set[str]:
    """Name the rows whose numbers are not reliable: every row for a flag without a threat, else its own and the
    union."""
    doubted: set[str] = set()
    for finding in findings:
        if finding.unreliable:
            doubted |= set(rows) if finding.flag.threat is None else {finding.flag.threat, "union"}
    return doubted


def merge(shards: Sequence[Reports]) -> Reports:
    """Merge the reports of all shards of an evaluation into what one process would have reported.

    Raises BadInput where a shard is missing, is given twice, or belongs to another evaluation.
    """
    found = sorted(
        ((reports.after.part, reports.after, reports) for reports in shards if reports.after and reports.after.part),
        key=lambda one: one[0].first,
    )
    if len(found) < len(shards) or not found:
        raise BadInput(
            "one of these is not a part of an evaluation",
            hint="give the reports of: python -m core evaluate ... --shard I/N",
            field="merge",
        )
    _check_parts([part for part, _, _ in found])
    first = found[0][2]
    for _, _, other in found[1:]:
        if _identity(other) != _identity(first):
            raise BadInput(
                "these are parts of different evaluations: spec, model, data, images of corruptions or versions differ",
                hint="run all shards with the same spec, model, data, --corruptions, version of Temper and release of "
                "torch; the devices may differ",
                field="merge",
            )
    if any(part.first + report.examples != after.first for (part, report, _), (after, _, _) in pairwise(found)):
        raise BadInput(
            "the points of these shards do not follow one another",
            hint="run all shards with the same number of test points and the same evaluation.batch_size",
            field="merge",
        )
    merged = _merge_reports([report for _, report, _ in found])
    warnings = add_warnings(chain.from_iterable(shard.warnings for _, _, shard in found))
    return Reports(before=None, after=merged, run=first.run, warnings=warnings)


def _check_parts(parts: Sequence[Part]) -> None:
    count = parts[0].count
    missing = sorted(set(range(1, count + 1)) - {part.index for part in parts})
    if missing or len(parts) != count or {part.count for part in parts} != {count}:
        told = f"missing: {', '.join(f'{index}/{count}' for index in missing)}" if missing else "some are given twice"
        raise BadInput(
            f"{len(parts)} reports do not make one evaluation of {count} shards; {told}",
            hint="give the report of each shard once",
            field="merge",
        )


def _identity(reports: Reports) -> tuple[object, ...]:
    """What all shards of one evaluation have in common."""
    run, after = reports.run, reports.after
    assert after is not None
    known = (run.spec, run.base_sha256, run.data_sha256, verdict_versions(run.versions)) if run else ()
    common = after.unseen and after.unseen.common
    return (
        *known,
        common and common.source,
        after.format,
        after.protocol,
        after.engine,
        after.seed,
        after.batch_size,
        after.eps,
    )


def _merge_reports(shards: Sequence[Report]) -> Report:
    first = shards[0]
    return make_report(
        protocol=first.protocol,
        engine=first.engine,
        seed=first.seed,
        batch_size=first.batch_size,
        eps=first.eps,
        points=_join([shard.points for shard in shards if shard.points]),
        records=[sum_records(records) for records in zip(*(shard.attacks for shard in shards), strict=True)],
        # What the results give reason for is decided again for the whole; the rest is checked on the first shard alone.
        flags=[flag for shard in shards for flag in shard.flags if flag.code not in OF_RESULTS],
        seconds=sum(shard.seconds for shard in shards),
        unseen=merge_unseen([shard.unseen for shard in shards if shard.unseen]) if first.unseen else None,
    )


def _join(shards: Sequence[Points]) -> Points:
    names = [shard.files for shard in shards if shard.files is not None]
    return Points(
        ids=tuple(chain.from_iterable(shard.ids for shard in shards)),
        files=tuple(chain.from_iterable(names)) if len(names) == len(shards) else None,
        labels=tuple(chain.from_iterable(shard.labels for shard in shards)),
        predicted={
            row: tuple(chain.from_iterable(shard.predicted[row] for shard in shards)) for row in shards[0].predicted
        },
    )
