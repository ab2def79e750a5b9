"""From verdicts to rates, and from parts to the whole."""

import json

import pytest
from pydantic import ValidationError

from core.evaluation.rates import rate
from core.evaluation.report import make_report, merge
from core.schema.errors import BadInput
from core.schema.report import FORMAT, Part, Points, Report, Reports


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (573, 1000, 0.5422, 0.6033)],
)
def test_intervals_are_wilsons(count: int, total: int, low: float, high: float) -> None:
    interval = rate(count, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


def _part(index: int, count: int, first: int, clean: str, *, eps: float = 0.1, attacked: int = 2) -> Reports:
    part = Part(index=index, count=count, first=first)
    predicted = tuple(map(int, clean))
    found: Report = make_report(
        protocol="fast",
        engine="temper",
        seed=0,
        batch_size=2,
        eps={"linf": eps},
        points=Points(
            ids=tuple(f"image-{first + place}" for place in range(len(clean))),
            labels=(1,) * len(clean),
            predicted={"clean": predicted, "linf": predicted},
        ),
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
    assert merged.points == Points(
        ids=("image-0", "image-1", "image-2", "image-3"),
        labels=(1, 1, 1, 1),
        predicted={"clean": (1, 0, 0, 1), "linf": (1, 0, 0, 1)},
    )


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([_part(1, 2, 0, "11")], "missing: 2/2"),
        ([_part(1, 2, 0, "11"), _part(1, 2, 0, "11")], "missing: 2/2"),
        ([_part(1, 2, 0, "11"), _part(2, 2, 2, "11"), _part(2, 2, 2, "11")], "some are given twice"),
        ([_part(1, 2, 0, "11"), _part(2, 2, 2, "11", eps=0.2)], "different evaluations"),
        ([_part(1, 1, 0, "11"), Reports(before=None, after=None)], "not a part"),
    ],
)
def test_what_is_no_whole_is_refused_with_what_is_wrong(parts: list[Reports], told: str) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        merge(parts)
    assert caught.value.hint


def test_a_newer_report_is_read_without_what_is_unknown_of_it() -> None:
    reports = _part(1, 2, 0, "10")
    newer = json.loads(reports.model_dump_json())
    newer["after"] |= {"format": FORMAT + 1, "a_new_section": {"rows": [1]}, "falls": {"file": "falls.safetensors"}}
    newer["after"]["clean"]["a_new_field"] = 1
    newer["another"] = None
    read = Reports.read(json.dumps(newer))
    assert reports.after is not None
    after = reports.after.model_copy(update={"format": FORMAT + 1, "falls": {"file": "falls.safetensors"}})
    assert read == Reports(before=None, after=after)
    with pytest.raises(ValidationError, match="a_new_section"):
        Report(**after.model_dump(), a_new_section={})


def test_columns_per_point_are_one_string_each_in_json() -> None:
    reports = _part(1, 2, 0, "10")
    written = json.loads(reports.model_dump_json())["after"]
    assert written["points"] == {
        "ids": "image-0 image-1",
        "files": None,
        "labels": "1 1",
        "predicted": {"clean": "1 0", "linf": "1 0"},
    }
    assert written["verdicts"] == {"clean": "10", "linf": "10", "union": "10"}
    assert Reports.read(json.dumps({"before": None, "after": written})) == reports
