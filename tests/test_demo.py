"""`make demo` keeps its promise, and cleans up after itself."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_keeps_its_promise_and_leaves_only_the_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo"]
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as promised" in done.stdout
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in left] == ["digits-e-at.safetensors"]
