"""From verdicts per point to the section of a report on threats that no training prepares for."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean

from core.evaluation.rates import rate
from core.evaluation.row import sum_records
from core.schema.report import AttackRecord, CommonCorruptions, CorruptionSource, UnseenReport, UnseenRow
from core.schema.threats import SEVERITIES, STANDARD_CORRUPTIONS

Verdicts = Mapping[tuple[str, float], str]
"""A digit per point, 1 where the model is right, by threat and budget."""


def summarise(
    verdicts: Verdicts,
    records: Sequence[AttackRecord],
    *,
    preset: str | None,
    provenance: str | None,
    source: CorruptionSource | None,
    reference_errors: Mapping[str, float] | None,
) -> UnseenReport:
    """Sum up the verdicts per point as rows, and the rows as means and the union.

    source: where the corrupted images come from; None where no corruption was evaluated.
    """
    rows = tuple(
        UnseenRow(threat=threat, budget=budget, accuracy=rate(column.count("1"), len(column)), verdicts=column)
        for (threat, budget), column in verdicts.items()
    )
    attacks = [row for row in _largest(rows) if not row.is_corruption]
    together = [min(verdicts) for verdicts in zip(*(row.verdicts for row in attacks), strict=True)]
    return UnseenReport(
        preset=preset,
        provenance=provenance,
        rows=rows,
        attacks=tuple(records),
        common=_common(rows, source, reference_errors),
        average=fmean(row.accuracy.value for row in attacks) if attacks else None,
        union=rate(together.count("1"), len(together)) if attacks else None,
    )


def _largest(rows: Sequence[UnseenRow]) -> Iterator[UnseenRow]:
    """Give the row of each threat's largest budget."""
    for _, same in groupby(rows, lambda row: row.threat):
        yield max(same, key=lambda row: row.budget)


def _common(
    rows: Sequence[UnseenRow], source: CorruptionSource | None, reference_errors: Mapping[str, float] | None
) -> CommonCorruptions | None:
    found = [row for row in rows if row.is_corruption]
    if source is None or not found:
        return None
    standard = [row for row in found if row.threat in STANDARD_CORRUPTIONS]
    per_corruption = {
        threat: fmean(row.accuracy.value for row in same) for threat, same in groupby(found, lambda row: row.threat)
    }
    # Every severity has the same corruptions, or the means of two severities could not be compared.
    asked = {threat: {row.budget for row in found if row.threat == threat} for threat in per_corruption}
    severities = sorted(set.intersection(*asked.values()))
    same_severities = all(budgets == set(severities) for budgets in asked.values())
    whole = same_severities and per_corruption.keys() >= set(STANDARD_CORRUPTIONS)
    mce = None
    if whole and reference_errors and severities == list(SEVERITIES):
        mce = fmean((1 - per_corruption[name]) / reference_errors[name] for name in STANDARD_CORRUPTIONS)
    return CommonCorruptions(
        source=source,
        mean=fmean(row.accuracy.value for row in standard) if whole else None,
        per_corruption=per_corruption,
        per_severity={
            int(severity): fmean(row.accuracy.value for row in found if row.budget == severity)
            for severity in severities
        },
        mce=mce,
        reference_errors=dict(reference_errors) if reference_errors else None,
    )


def merge_unseen(shards: Sequence[UnseenReport]) -> UnseenReport:
    """Merge what the shards of one evaluation found, in the order of their points."""
    first = shards[0]
    columns = zip(*(shard.rows for shard in shards), strict=True)
    return summarise(
        {(rows[0].threat, rows[0].budget): "".join(row.verdicts for row in rows) for rows in columns},
        [sum_records(records) for records in zip(*(shard.attacks for shard in shards), strict=True)],
        preset=first.preset,
        provenance=first.provenance,
        source=first.common.source if first.common else None,
        reference_errors=first.common.reference_errors if first.common else None,
    )
