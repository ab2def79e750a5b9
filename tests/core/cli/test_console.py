"""Events in words."""

import pytest

from core.cli.console import event_lines, table
from core.schema.events import Stepped
from core.schema.progress import NormCount, Rate
from core.schema.report import Report


def test_a_table_names_the_numbers_that_are_not_reliable() -> None:
    rate = Rate(value=0.5, count=2, total=4, low=0.1, high=0.9)
    doubted = rate.model_copy(update={"reliable": False})
    report = Report.model_construct(
        clean=rate, robust={"linf": doubted}, union=doubted, eps={"linf": 0.1}, protocol="fast", examples=4
    )
    assert "model: linf, union not reliable; the flags say why" in list(table({"model": report}))
    sound = report.model_copy(update={"robust": {"linf": rate}, "union": rate})
    assert not any("not reliable" in line for line in table({"model": sound}))


@pytest.mark.parametrize(
    ("norm", "counted", "told"),
    [("l1", ("linf", "l1"), " l1 "), (None, ("linf", "l2"), " linf+l2 "), (None, (), " - ")],
)
def test_a_step_says_which_norms_were_attacked(norm: str | None, counted: tuple[str, ...], told: str) -> None:
    step = Stepped(
        step=20,
        total_steps=20,
        epoch=1.0,
        loss=0.5,
        learning_rate=0.01,
        norm=norm,
        counts={name: NormCount(seen=8, robust=4) for name in counted},
        seconds=1.0,
    )
    (line,) = event_lines(step)
    assert told in line
