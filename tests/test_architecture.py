"""The shape of the code: which way imports point, what stays light, where a norm may be told from another."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "worker", "core", "client")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
# All else passes norms along.
KNOW_NORMS = (
    "core/schema/catalog.py",
    "core/schema/spec.py",
    "core/schema/protocols.py",
    "core/geometry.py",
    "core/attacks/",
)


def test_imports_point_one_way() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    checked = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_of_core_only_the_schema_is_imported_from_outside() -> None:
    imported = re.compile(r"^ *(?:from|import) core(?!\.schema\b)", re.MULTILINE)
    others = [file for file in SOURCES if file.relative_to(ROOT).parts[0] != "core"]
    assert [str(file) for file in others if imported.search(file.read_text())] == []


def loaded_by(module: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after importing a module."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["app.main", "worker.polling", "worker.main", "client.commands"])
def test_light_parts_load_no_tensor_library(module: str) -> None:
    assert loaded_by(module) & {"torch", "torchvision", "numpy", "safetensors", "sklearn"} == set()


def test_client_loads_neither_service_nor_web_framework() -> None:
    assert loaded_by("client.commands") & {"app", "worker", "fastapi", "starlette", "sqlalchemy", "uvicorn"} == set()


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = re.compile(r"(util|helper|common|base|manager|misc)s?(_.*)?\.py|.*_(util|helper|manager)s?\.py")
    tests = (ROOT / "tests").rglob("*.py")
    assert [str(file) for file in (*SOURCES, *tests) if drawers.fullmatch(file.name)] == []


def test_norms_are_compared_only_where_they_are_known() -> None:
    comparison = re.compile(r"""([!=]=|case|in) *\(?["'](linf|l2|l1)["']|["'](linf|l2|l1)["'] *([!=]=|in )""")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in SOURCES
        if not str(file.relative_to(ROOT)).startswith(KNOW_NORMS)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if comparison.search(line)
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    assert [str(file) for file in SOURCES if not file.read_text().startswith('"""')] == []
