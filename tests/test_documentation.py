"""What is written is true: the README's folders exist, examples load, every field is described. More in tests/docs."""

import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import get_args

import pytest
from pydantic import BaseModel

from app import schemas
from core.schema.record import field_docstrings
from core.schema.spec import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.json"))
UNTOLD = {".ci"}
"""Folders that are no reader's concern."""
WINGS = ("app", "client", "core", "worker")
"""Folders whose own folders are told, too."""


def files_on_disk() -> set[str]:
    """All that git keeps, or would keep."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).exists()}


def folders_in_the_readme() -> list[str]:
    """The folders of the README's tree, as `core/schema`."""
    tree = README.split("## Folders\n\n```\n")[1].split("```")[0]
    paths: list[str] = []
    top = ""
    for line in tree.splitlines():
        name, phrase = line.split(maxsplit=1)
        assert phrase, f"{name} has no phrase"
        top = top if line.startswith(" ") else name
        paths.append(top.rstrip("/") + ("" if top == name else f"/{name.rstrip('/')}"))
    return paths


def test_folders_in_the_readme_are_those_on_disk() -> None:
    parents = [Path(name).parent.parts for name in files_on_disk()]
    top = {parts[0] for parts in parents if parts} - UNTOLD
    wings = {f"{parts[0]}/{parts[1]}" for parts in parents if len(parts) > 1 and parts[0] in WINGS}
    told = [path for path in folders_in_the_readme() if not path.endswith(".py")]
    assert len(told) == len(set(told))
    assert set(told) == top | wings


def test_the_readme_tells_the_modules_in_the_root_of_core() -> None:
    modules = {name for name in files_on_disk() if re.fullmatch(r"core/[a-z]\w*\.py", name)}
    told = [path for path in folders_in_the_readme() if path.endswith(".py")]
    assert len(told) == len(set(told))
    assert set(told) == modules | {"app/main.py", "app/tables.py", "app/tasks.py"}


def test_readme_is_short() -> None:
    assert len(README.encode()) <= 12_000


def answers() -> list[ModuleType]:
    """The modules of `app.schemas`."""
    return [import_module(f"app.schemas.{found.name}") for found in iter_modules(schemas.__path__)]


def models_of(module: ModuleType) -> Iterator[type[BaseModel]]:
    """The public models that a module defines."""
    public = (value for name, value in vars(module).items() if not name.startswith("_"))
    for value in public:
        is_ours = isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
        if is_ours and not value.__pydantic_generic_metadata__["origin"]:
            yield value


@pytest.mark.parametrize("module", answers(), ids=lambda module: module.__name__)
def test_every_field_is_described(module: ModuleType) -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in models_of(module)
        for name in inspect.get_annotations(model).keys() - field_docstrings(model).keys()
        if len(get_args(model.model_fields[name].annotation)) != 1  # a constant says it all
    ]
    assert silent == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_is_a_valid_spec(example: Path) -> None:
    assert parse(json.loads(example.read_text()))


def test_changelog_knows_the_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
