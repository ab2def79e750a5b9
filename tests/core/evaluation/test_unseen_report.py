"""From verdicts under other threats to the section of a report."""

import pytest

from core.evaluation.checks import flags_of_unseen
from core.evaluation.unseen_report import merge_unseen, summarise
from core.schema.report import AttackRecord, UnseenReport
from core.schema.threats import SEVERITIES, STANDARD_CORRUPTIONS

_ATTACKS = {("l0", 1.0): "1111", ("l0", 9.0): "1100", ("fog", 128.0): "1010"}


def _record(threat: str, *, late: int = 0, no_gradient: int = 0) -> AttackRecord:
    return AttackRecord(
        threat=threat, attack="x", attacked=4, robust=2, late=late, no_gradient=no_gradient, seconds=1.0
    )


def _summary(
    verdicts: dict[tuple[str, float], str],
    records: tuple[AttackRecord, ...] = (),
    reference_errors: dict[str, float] | None = None,
) -> UnseenReport:
    return summarise(verdicts, records, preset=None, provenance=None, source="cifar", reference_errors=reference_errors)


def test_average_and_union_count_each_attack_at_its_largest_budget() -> None:
    found = _summary(_ATTACKS)
    assert [(row.id, row.accuracy.count) for row in found.rows] == [("l0 1", 4), ("l0 9", 2), ("fog 128", 2)]
    assert found.average == 0.5
    assert found.union is not None
    assert (found.union.count, found.union.total) == (1, 4)
    assert found.common is None


def test_corruptions_have_means_and_belong_to_no_union() -> None:
    first, *others = STANDARD_CORRUPTIONS
    verdicts = {(first, float(severity)): "1000" if severity == 1 else "0000" for severity in SEVERITIES} | {
        (name, float(severity)): "1110" for name in others for severity in SEVERITIES
    }
    reference = dict.fromkeys(STANDARD_CORRUPTIONS, 0.5)
    found = _summary(verdicts, reference_errors=reference)
    assert (found.average, found.union) == (None, None)
    assert found.common is not None
    assert found.common.per_corruption[first] == pytest.approx(0.05)
    assert found.common.mean == pytest.approx((0.05 + 14 * 0.75) / 15)
    assert found.common.per_severity[1] == pytest.approx((0.25 + 14 * 0.75) / 15)
    assert found.common.per_severity[5] == pytest.approx(14 * 0.75 / 15)
    assert found.common.mce == pytest.approx((0.95 / 0.5 + 14 * 0.25 / 0.5) / 15)
    two = {key: column for key, column in verdicts.items() if key[1] < 3}
    fewer = _summary(two, reference_errors=reference).common
    assert fewer is not None
    assert fewer.mean is not None
    assert fewer.mce is None, "the errors of a reference are means over all severities"


def test_no_mean_is_given_where_a_standard_corruption_is_missing() -> None:
    found = _summary({("common/fog", 1.0): "10"}).common
    assert found is not None
    assert (found.mean, found.mce, found.per_corruption) == (None, None, {"common/fog": 0.5})


def test_shards_merge_to_the_whole() -> None:
    verdicts = _ATTACKS | {("common/fog", 2.0): "0111"}
    whole = _summary(verdicts, (_record("l0 9"),))
    parts = [
        _summary({key: column[half] for key, column in verdicts.items()}, (_record("l0 9"),))
        for half in (slice(0, 1), slice(1, 4))
    ]
    merged = merge_unseen(parts)
    assert merged.rows == whole.rows
    assert (merged.average, merged.union, merged.common) == (whole.average, whole.union, whole.common)
    assert [record.attacked for record in merged.attacks] == [8]


def test_a_search_that_has_not_converged_and_a_blind_one_are_flagged() -> None:
    weak = _summary(_ATTACKS, (_record("l0 9", late=2), _record("fog 128", no_gradient=2)))
    flags = {flag.code: flag for flag in flags_of_unseen(weak, 100)}
    assert {code: flag.threat for code, flag in flags.items()} == {
        "not_converged": "l0 9",
        "vanished_gradients": "fog 128",
    }
    assert list(flags_of_unseen(weak, 200)) == [], "one per cent of the points is not many"
