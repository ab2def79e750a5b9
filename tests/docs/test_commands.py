"""Every command of the documentation exists and takes the arguments that it is given, also where no test runs it."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app.platform.settings import Settings
from client.cli.app import app
from core.cli.parser import make_parser
from core.schema.spec import parse
from tests.support.documentation import ROOT, Block, all_blocks, pages

_LANGUAGES = {"", "bash", "console", "json", "python", "toml", "yaml"}
_OTHERS = {"docker", "export", "git", "source", ".venv/bin/pre-commit"}
"""Programs that are not ours."""
_OURS = r"(?:app|benchmarks|client|core|deploy|docs|examples|migrations|tests|worker)"
_PROSE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", all_blocks("console"), ids=str)
def test_commands_exist_and_take_their_arguments(block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert block.commands
    for command in block.commands:
        for part in command.partition(" #")[0].split(" && "):
            _check([word for word in shlex.split(part) if not re.match(r"[A-Z_]+=", word)], f"{block}: {command}")


def _check(words: list[str], where: str) -> None:
    match words:
        case ["temper", *rest]:
            # typer would open the file.
            _parse_temper(get_command(app), ["-" if word.endswith(".json") else word for word in rest])
        case ["python", "-m", "core", *rest]:
            make_parser().parse_args(rest)
        case ["torchrun", *rest]:
            make_parser().parse_args(rest[rest.index("core") + 1 :])
        case ["python" | ".venv/bin/python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), where
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), where
        case [program, *_]:
            assert program in _OTHERS | {"echo"} or (ROOT / program).is_file(), where


def _parse_temper(command: Any, words: list[str]) -> None:
    """Have typer read the arguments of a command, without running it. Raises its UsageError."""
    context = command.make_context("temper", list(words))
    inner = getattr(command, "commands", {})
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    if inner and rest:
        _parse_temper(inner[rest[0]], rest[1:])


def test_every_block_says_its_language_and_every_reason_stands_before_a_block() -> None:
    for page in pages():
        text = page.read_text()
        languages = set(re.findall(r"^```(\w*)\n.*?^```$", text, re.DOTALL | re.MULTILINE))
        assert languages <= _LANGUAGES, page
    # A command that is not run is checked above. A call of the API or of the library is checked by running it.
    assert {block.language for block in all_blocks(*_LANGUAGES) if block.not_run} <= {"console"}
    found = sum(bool(block.not_run) for block in all_blocks(*_LANGUAGES))
    assert found == sum(len(re.findall("^<!-- not run: ", page.read_text(), re.MULTILINE)) for page in pages())


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_spec_in_a_page_is_valid_and_that_of_the_file_it_names(block: Block) -> None:
    spec = json.loads(block.text)
    assert parse(spec)
    if named := re.findall(r"`(examples/\w+\.json)`", block.before):
        assert spec == json.loads((ROOT / named[0]).read_text())


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_compose_override_in_a_page_is_yaml_about_services(block: Block) -> None:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, service in yaml.load(block.text, Loader=loader)["services"].items():  # a safe loader
        assert name in compose or service["extends"]["service"] in compose


def test_every_variable_that_a_page_names_exists() -> None:
    ours = {f"TEMPER_{name.upper()}" for name in Settings.model_fields} | {"TEMPER_URL", "TEMPER_API_KEY"}
    ours |= set(re.findall(r"TEMPER_\w+", (ROOT / "docker-compose.yml").read_text()))
    for page in pages():
        for name in set(re.findall(r"\bTEMPER_[A-Z0-9_]+", page.read_text())):
            family = name.endswith("_") and any(each.startswith(name) for each in ours)
            assert name in ours or family, f"{page.name}: {name}"


def test_every_file_and_module_that_a_page_names_exists() -> None:
    for page in pages():
        prose = _PROSE.sub("", page.read_text())
        for path in re.findall(rf"`({_OURS}/[\w./-]*)`", prose):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        for name in re.findall(r"`(?:python -m )?((?:app|benchmarks|client|core|tests|worker)(?:\.\w+)+)", prose):
            assert _defined(name), f"{page.name}: {name}"


def _defined(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines or re-exports."""
    *parents, last = name.split(".")
    package, module = ROOT.joinpath(*parents, last), ROOT.joinpath(*parents)
    if package.is_dir() or package.with_suffix(".py").is_file():
        return True
    source = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
    return source.is_file() and re.search(rf"\b{last}\b", source.read_text()) is not None


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\w+)", listed, re.MULTILINE)) == targets
