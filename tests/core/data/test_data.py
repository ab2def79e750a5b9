"""Data sets by name and path: what belongs together, and what each is told when it does not."""

from pathlib import Path

import pytest

from core import data
from core.schema.errors import BadDataset, BadInput


def test_a_path_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="take no path"):
        data.load("digits", tmp_path)


def test_unknown_names_and_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        data.load("digit")
    assert "did you mean 'digits'?" in caught.value.hint
    with pytest.raises(BadDataset, match="does not exist"):
        data.load("mine", tmp_path / "nowhere")
