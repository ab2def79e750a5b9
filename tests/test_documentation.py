"""What is written is true: the tree is the disk, examples load, snippets name what exists, every field is described."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import get_args

import pytest
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from typer.main import get_command

from app import schemas
from app.main import create_app
from app.platform.database import Database
from app.platform.settings import Settings
from client import commands, records
from core.schema import catalog, events, inspection_report, model_zoo, report, spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.json"))


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for named, text in fenced if named == language]


def files_on_disk() -> set[str]:
    """All that git keeps, or would keep."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).exists()}


def paths_in_tree() -> list[str]:
    """The paths of the README's tree; a folder ends with a slash."""
    (tree,) = (block for block in blocks("") if "pyproject.toml" in block)
    paths: list[str] = []
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name, phrase = line.split(maxsplit=1)
        assert phrase, f"{name} has no phrase"
        paths.append("".join(folders[:depth]) + name)
        folders[depth:] = [name]
    return paths


def test_tree_in_the_readme_is_the_disk() -> None:
    files, paths = files_on_disk(), paths_in_tree()
    # A folder of which the tree lists nothing stands for all that is in it.
    closed = [path for path in paths if path.endswith("/") and sum(other.startswith(path) for other in paths) == 1]
    untold = {
        file
        for file in files
        if file not in paths and not file.endswith("__init__.py") and not file.startswith(tuple(closed))
    }
    gone = [path for path in paths if not any(file == path or file.startswith(path) for file in files)]
    assert (untold, gone) == (set(), [])


def answers() -> list[ModuleType]:
    """The modules of `app.schemas`."""
    return [import_module(f"app.schemas.{found.name}") for found in iter_modules(schemas.__path__)]


def models_of(module: ModuleType) -> Iterator[type[BaseModel]]:
    """The public models that a module defines."""
    public = (value for name, value in vars(module).items() if not name.startswith("_"))
    for value in public:
        if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__:
            yield value


@pytest.mark.parametrize(
    "module",
    [spec, events, report, inspection_report, catalog, model_zoo, *answers(), records],
    ids=lambda module: module.__name__,
)
def test_every_field_is_described(module: ModuleType) -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in models_of(module)
        for name, field in model.model_fields.items()
        if not field.description and len(get_args(field.annotation)) != 1  # a constant says it all
    ]
    assert silent == []


def test_every_setting_is_described_in_the_readme() -> None:
    for name, field in Settings.model_fields.items():
        row = re.search(rf"^\| `TEMPER_{name.upper()}` \| .* \| (.*) \|$", README, re.MULTILINE)
        assert row is not None, f"the README lacks TEMPER_{name.upper()}"
        assert row[1] == field.description


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_is_a_valid_spec(example: Path) -> None:
    assert spec.parse(json.loads(example.read_text()))


def test_python_in_the_readme_parses_and_imports_what_exists() -> None:
    imports = [node for snippet in blocks("python") for node in ast.walk(ast.parse(snippet))]
    ours = [node for node in imports if isinstance(node, ast.ImportFrom) and node.module != "pathlib"]
    assert ours
    for node in ours:
        source = (ROOT / f"{str(node.module).replace('.', '/')}").with_suffix(".py")
        module = ast.parse((source if source.exists() else source.with_suffix("") / "__init__.py").read_text())
        defined = {getattr(item, "name", None) for item in ast.walk(module)}
        assert {alias.name for alias in node.names} <= defined


def test_curl_in_the_readme_calls_routes_that_exist(settings: Settings, database: Database) -> None:
    app = create_app(settings, database)
    document = get_openapi(title="Temper", version="", routes=app.routes)
    routes = {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    sessions = "".join(blocks("bash"))
    commands = [line for line in sessions.replace("\\\n", " ").splitlines() if "curl " in line]
    called = {_call(command) for command in commands}
    assert called
    assert called <= routes


def _call(command: str) -> tuple[str, str]:
    words = shlex.split(command[command.index("curl ") :].split(" | ")[0])
    (address,) = (word for word in words if word.startswith("$url"))
    path = re.sub(r"\$\w+", "{}", address.removeprefix("$url").partition("?")[0])
    return ("POST" if "-d" in words or "POST" in words else "GET"), path


def test_temper_commands_in_the_readme_exist() -> None:
    known = get_command(commands.app)
    used = {shlex.split(line)[2] for block in blocks("console") for line in block.splitlines() if "$ temper " in line}
    assert used
    assert used <= set(known.commands)  # type: ignore[attr-defined]  # a group, as there are several commands


def test_core_commands_in_the_readme_are_understood() -> None:
    for block in blocks("console"):
        for line in block.splitlines():
            if "$ python -m core" in line:
                options = [word for word in shlex.split(line) if word.startswith("--")]
                kind = shlex.split(line)[4]
                usage = subprocess.run(
                    [sys.executable, "-m", "core", kind, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
                ).stdout
                assert all(option in usage for option in options), line


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\w+)", listed, re.MULTILINE)) == targets
    assert set(re.findall(r"\$ make (\w+)", README)) <= targets


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
            if not target.startswith("https://"):
                assert (ROOT / target.partition("#")[0]).exists(), f"{document.name}: {target}"


def test_changelog_knows_the_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
