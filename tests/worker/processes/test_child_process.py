"""A child process leaves nothing behind: no process, and no temporary file."""

import sys
from pathlib import Path

import pytest

from worker.processes.child_process import ChildProcess


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder in which temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_what_a_process_leaves_in_its_temporary_folder_is_removed(tmp_path, temporary):
    script = "import tempfile; print(tempfile.mkdtemp())"
    with ChildProcess([sys.executable, "-c", script], stderr=tmp_path / "log", stdout=tmp_path / "out") as process:
        assert process.wait(60) == 0
        made = Path((tmp_path / "out").read_text().strip())
        assert made.is_dir()
        assert made.parent.parent == temporary
    assert list(temporary.iterdir()) == []


def test_a_process_that_cannot_be_started_leaves_no_folder(tmp_path, temporary):
    with pytest.raises(FileNotFoundError):
        ChildProcess([str(tmp_path / "nothing")], stderr=tmp_path / "log")
    assert list(temporary.iterdir()) == []
