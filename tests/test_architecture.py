"""The shape of the code: which way imports point, what stays light, where a norm may be told from another."""

import ast
import re
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest

from core.schema.catalog import NORMS

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "worker", "core", "client")
RESOURCES = sorted(
    f"client.{folder}.{file.stem}"
    for folder in ("cli", "resources")
    for file in (ROOT / "client" / folder).glob("[a-z]*.py")
)
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
# All else passes norms along.
KNOW_NORMS = (
    "core/schema/catalog.py",
    "core/schema/radius.py",
    "core/schema/protocols.py",
    "core/geometry.py",
    "core/attacks/planes.py",
)


def test_imports_point_one_way() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    checked = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_of_core_only_the_schema_is_imported_from_outside() -> None:
    imported = re.compile(r"^ *(?:from|import) core(?!\.schema\b)", re.MULTILINE)
    others = [file for file in SOURCES if file.relative_to(ROOT).parts[0] != "core"]
    assert [str(file) for file in others if imported.search(file.read_text())] == []


def test_of_the_service_the_client_imports_the_schemas_alone() -> None:
    imported = re.compile(r"^ *(?:from|import) (?:app(?!\.schemas\b)|worker\b)", re.MULTILINE)
    client = [file for file in SOURCES if file.relative_to(ROOT).parts[0] == "client"]
    assert [str(file) for file in client if imported.search(file.read_text())] == []


def test_schemas_of_the_api_import_pydantic_and_the_core_schema_alone() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "pydantic_core", "app.schemas", "core.schema"}
    imported = {
        ".".join(name.split(".")[:2]) if name.startswith(("app", "core")) else name.split(".")[0]
        for file in (ROOT / "app" / "schemas").glob("*.py")
        for name in re.findall(r"^ *(?:from|import) ([\w.]+)", file.read_text(), re.MULTILINE)
    }
    assert imported - allowed == set()


@cache
def loaded_by(*modules: str) -> set[str]:
    """All modules that a fresh interpreter has loaded after importing some."""
    script = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


API = ("app.main",)
WORKER = ("worker.polling", "worker.main")
CLIENT = ("client.__main__", "client.temper", *RESOURCES)


@pytest.mark.parametrize("part", [API, WORKER, CLIENT], ids=lambda part: part[0])
def test_light_parts_load_no_tensor_library(part: tuple[str, ...]) -> None:
    assert loaded_by(*part) & {"torch", "torchvision", "numpy", "safetensors", "sklearn"} == set()


def test_worker_does_not_load_the_web_framework() -> None:
    assert loaded_by(*WORKER) & {"fastapi", "starlette", "uvicorn"} == set()


def test_client_loads_neither_service_nor_web_framework() -> None:
    loaded = loaded_by(*CLIENT)
    assert loaded & {"worker", "fastapi", "starlette", "sqlalchemy", "uvicorn", "pydantic_settings"} == set()
    assert {name for name in loaded if name.startswith("app.") and not name.startswith("app.schemas")} == set()


def test_help_loads_neither_http_nor_the_models_of_answers() -> None:
    script = "import sys; from client.__main__ import main\ntry: main()\nfinally: print(*sys.modules)"
    help_page = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(help_page, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Run jobs" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "client.cli.jobs" in loaded
    # Each module of answers imports app.schemas.answer.
    assert loaded & {"httpx2", "pydantic", "app.schemas.answer", "core.schema.spec", "importlib.metadata"} == set()


def test_list_loads_only_the_answers_that_it_shows() -> None:
    loaded = loaded_by("client.__main__", "client.temper", "client.resources.jobs", "client.display.jobs")
    assert "app.schemas.jobs" in loaded
    others = {"access", "catalogue", "job_request", "problems", "uploads", "usage"}
    runs = {f"core.schema.{name}" for name in ("spec", "method", "report", "events", "validation")}
    assert loaded & {"rich.live", *runs, *(f"app.schemas.{name}" for name in others)} == set()


def test_api_starts_without_what_only_some_instances_need() -> None:
    assert loaded_by("app.main") & {"httpx2", "alembic", "boto3", "celery", "redis", "psycopg", "tenacity"} == set()


def test_serve_starts_the_api_before_anything_slow_is_imported() -> None:
    assert loaded_by("client.cli.serve") & {"httpx2", "pydantic", "typer", "uvicorn", "sqlalchemy"} == set()


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = re.compile(r"(util|helper|common|base|manager|misc)s?(_.*)?\.py|.*_(util|helper|manager)s?\.py")
    tests = (ROOT / "tests").rglob("*.py")
    assert [str(file) for file in (*SOURCES, *tests) if drawers.fullmatch(file.name)] == []


def is_norm(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value in NORMS


def tells_norms_apart(node: ast.AST) -> bool:
    """Whether an expression compares something with a norm, or picks the value that belongs to one norm."""
    match node:
        case ast.Compare(left, _, others):
            sides = [part for side in (left, *others) for part in (side, *getattr(side, "elts", ()))]
            return any(is_norm(part) for part in sides)
        case ast.MatchValue(value):
            return is_norm(value)
        case ast.Subscript(value, key):
            return is_norm(key) or (isinstance(value, ast.Dict) and any(is_norm(known) for known in value.keys))
        case ast.Call(ast.Attribute(attr="get" | "pop"), [key, *_]):
            return is_norm(key)
    return False


@pytest.mark.parametrize(
    "code",
    [
        'norm == "l1"',
        '"l2" != norm',
        'norm in ("linf", "l1")',
        'norm not in {"l1"}',
        '"l2" not in eps',
        'eps["l1"]',
        'eps.get("l2", 0)',
        '{"l2": 2, "l1": 1}[norm]',
        'match norm:\n case "linf" | "l1": pass',
    ],
)
def test_each_way_to_tell_norms_apart_is_seen(code: str) -> None:
    assert any(tells_norms_apart(node) for node in ast.walk(ast.parse(code)))


def test_norms_are_compared_only_where_they_are_known() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"
        for file in SOURCES
        if not str(file.relative_to(ROOT)).startswith(KNOW_NORMS)
        for node in ast.walk(ast.parse(file.read_text()))
        if tells_norms_apart(node)
    ]
    assert found == []


def _narrows_a_type(condition: ast.expr) -> bool:
    """Tell whether an assertion only repeats for the type checker what holds anyway."""
    match condition:
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
        case ast.Call(func=ast.Name(id="isinstance")):
            return True
        case ast.Attribute():
            return True
    return False


def test_no_rule_of_the_library_is_an_assertion() -> None:
    # python -O leaves assertions out.
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / "core").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert) and not _narrows_a_type(node.test)
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    assert [str(file) for file in SOURCES if not file.read_text().startswith('"""')] == []
