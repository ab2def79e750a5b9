"""The code blocks of README and docs do what they say: commands, curl sessions and Python, on the files they name.

Jobs of the service run a training process that takes no time; what the library does is real.
"""

import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from client.__main__ import main as temper
from core.__main__ import main as core
from tests.docs.conftest import Site
from tests.support.documentation import ROOT, Block, blocks, pages

# The same runs on fewer images: the last of two equal options counts.
_QUICK = {
    "finetune": "--epochs 1 --train-examples 32 --evaluation.protocol fast --evaluation.examples 8",
    "train": "--epochs 1 --train-examples 32 --evaluation.protocol fast --evaluation.examples 8",
    "evaluate": "--evaluation.protocol fast --evaluation.examples 20",
}
_SERVICE = re.compile(r"^(\$ temper |curl |from client )", re.MULTILINE)
"""What a page has that asks a service."""
_LANGUAGES = ("console", "bash", "python")
_PAGES = [page for page in pages() if any(each.language in _LANGUAGES and not each.not_run for each in blocks(page))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs_from_top_to_bottom(
    page: Path,
    folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site: Site | None = None
    if _SERVICE.search(page.read_text()):
        site = request.getfixturevalue("site")
        monkeypatch.setenv("HOME", str(site.home))
    for name in [name for name in os.environ if name.startswith("TEMPER_")]:
        monkeypatch.delenv(name)
    # The limits that an inspection puts on its process cannot be taken back, and this process goes on.
    monkeypatch.setattr("core.sandbox.sandboxed", nullcontext)
    monkeypatch.setattr("core.sandbox.deny_network", lambda: "")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "json" and (named := re.search(r"Save this spec as `([\w.]+)`", block.before)):
            (folder / named[1]).write_text(block.text)
        if block.not_run:
            continue
        match block.language:
            case "python" if named := re.search(r"Save this as `(\w+\.py)`", block.before):
                Path(named[1]).write_text(block.text)
                # Another page or test may have imported a module of that name from its own folder.
                monkeypatch.delitem(sys.modules, Path(named[1]).stem, raising=False)
            case "python":
                exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
            case "bash":
                _run_in_bash(site.fill_in(block.text) if site else block.text, block)
            case "console":
                for command in block.commands:
                    _run(site.fill_in(command) if site else command, block)
    if site:
        site.tidy_up()
    capsys.readouterr()


def _run(command: str, block: Block) -> None:
    """Run a command of a console session, in this process where that is possible: it starts faster."""
    words = shlex.split(command, comments=True)
    if words[:3] == ["python", "-m", "core"]:
        status = core([*words[3:], *_QUICK.get(words[3], "").split()])
        assert status == 0, f"{block}: {command}"
    elif words[0] == "temper" and "&&" not in words:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as end:
                temper()
        assert end.value.code in (0, None), f"{block}: {command}"
    else:
        _run_in_bash(command, block)


def _run_in_bash(script: str, block: Block) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
