"""From verdicts to rates, and from parts to the whole."""

import pytest

from core.evaluation.report import merge, rate, report
from core.schema.errors import BadInput
from core.schema.events import Part, Report, Reports


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (573, 1000, 0.5422, 0.6033)],
)
def test_intervals_are_wilsons(count: int, total: int, low: float, high: float) -> None:
    interval = rate(count, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


def _part(index: int, count: int, first: int, clean: str, *, eps: float = 0.1, attacked: int = 2) -> Reports:
    part = Part(index=index, count=count, first=first)
    found: Report = report(
        protocol="fast",
        engine="temper",
        seed=0,
        batch_size=2,
        eps={"linf": eps},
        clean=clean,
        robust={"linf": clean},
        records=[],
        flags=[],
        seconds=float(attacked),
        part=part,
    )
    return Reports(before=None, after=found)


def test_parts_merge_in_the_order_of_their_points() -> None:
    merged = merge([_part(2, 2, 2, "01"), _part(1, 2, 0, "10")]).after
    assert merged is not None
    assert merged.verdicts == {"clean": "1001", "linf": "1001", "union": "1001"}
    assert (merged.clean.count, merged.examples, merged.part, merged.seconds) == (2, 4, None, 4.0)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([_part(1, 2, 0, "11")], "missing: 2/2"),
        ([_part(1, 2, 0, "11"), _part(1, 2, 0, "11")], "missing: 2/2"),
        ([_part(1, 2, 0, "11"), _part(2, 2, 2, "11"), _part(2, 2, 2, "11")], "come twice"),
        ([_part(1, 2, 0, "11"), _part(2, 2, 2, "11", eps=0.2)], "different evaluations"),
        ([_part(1, 1, 0, "11"), Reports(before=None, after=None)], "not a part"),
    ],
)
def test_what_is_no_whole_is_refused_with_what_is_wrong(parts: list[Reports], told: str) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        merge(parts)
    assert caught.value.hint
