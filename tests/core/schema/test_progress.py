"""Warnings of a run, each told once."""

from core.schema.events import Warned
from core.schema.progress import WarningRecord, add_warnings


def test_a_later_warning_about_the_same_takes_the_place_of_the_earlier_one() -> None:
    told = [
        Warned(code="data_left_out", message="1 file"),
        Warned(code="preflight_claim", message="less", threat="linf"),
        Warned(code="preflight_claim", message="less", threat="l1"),
        Warned(code="data_left_out", message="3 files", remedy="mend them"),
    ]
    known: tuple[WarningRecord, ...] = ()
    for warning in told:
        known = add_warnings(known, warning)
    assert known == add_warnings((), *told) == add_warnings(told)
    assert [(each.code, each.threat) for each in known] == [
        ("preflight_claim", "linf"),
        ("preflight_claim", "l1"),
        ("data_left_out", None),
    ]
    assert [type(each) for each in known] == [WarningRecord] * 3
    assert known[-1].text == "3 files; mend them"
