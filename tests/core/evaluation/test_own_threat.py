"""The guide to a threat of one's own (docs/how-to/threats.md), followed step by step."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import core.threats
from core.evaluation import evaluate
from core.schema import threats as catalogue
from core.schema.catalog import read_entries
from core.schema.threats import ThreatEntry
from tests.support.documentation import ROOT, blocks

_GUIDE = ROOT / "docs" / "how-to" / "threats.md"


@pytest.fixture
def own_threat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write the guide's file and add its entry, as the guide says; yields the name of the threat."""
    (code,) = (block.text for block in blocks(_GUIDE) if block.language == "python")
    (entry,) = (block.text for block in blocks(_GUIDE) if block.language == "toml")
    tables = tomllib.loads(entry)["threats"]
    (name,) = tables
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(core.threats, "__path__", [*core.threats.__path__, str(tmp_path)])
    monkeypatch.setitem(catalogue.THREATS, name, read_entries(ThreatEntry, tables)[name])
    yield name
    sys.modules.pop(f"core.threats.{name}", None)


def test_a_threat_of_ones_own_is_evaluated_as_the_guide_says(
    own_threat: str, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:60] for points in test_digits)
    report = evaluate(base, images, labels, {"linf": 0.1}, protocol="fast", unseen=[own_threat])
    assert report.unseen is not None
    small, large = report.unseen.rows
    assert (small.id, large.id) == ("brightening 0.1", "brightening 0.2")

    def is_right(amount: float) -> Tensor:
        with torch.no_grad():
            return torch.stack(
                [
                    base.eval()((images + shift).clamp(0, 1)).argmax(1) == labels
                    for shift in (0.0, *torch.linspace(-amount, amount, 10).tolist())
                ]
            ).all(0)

    for row, amount in ((small, 0.1), (large, 0.2)):
        assert row.accuracy.count == int((is_right(0.1) & is_right(amount)).sum())
