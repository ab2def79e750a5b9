"""Events in words."""

import pytest

from core.cli.console import event_lines
from core.schema.events import Stepped
from core.schema.progress import NormCount


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
