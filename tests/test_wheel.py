"""The wheel works where nothing but it and the client's dependencies is installed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_NAME = re.compile(r"[\w.-]+")
_HEAVY = {"torch", "torchvision", "numpy", "fastapi", "sqlalchemy", "celery", "boto3"}
_CHECK = """
import importlib.metadata, sys
import client, core.schema.spec, core.schema.events, core.schema.catalog
assert core.schema.spec.parse({"base_model": "digits-cnn-linf"}).dataset == "digits"
print(importlib.metadata.version("temper"), core.__file__)
print(*sorted(name.partition(".")[0] for name in sys.modules))
"""


def required(name: str, extra: str = "") -> Iterator[str]:
    """Name what a distribution needs here, and what that needs; each once for each way to it."""
    for line in distribution(name).requires or ():
        requirement, _, marker = line.partition(";")
        wanted = (
            f'extra == "{extra}"' in marker.replace("'", '"')
            if "extra ==" in marker
            else "python_version" not in marker
        )
        if wanted and "platform" not in marker and (found := _NAME.match(requirement)):
            yield found[0]
            yield from required(found[0])


def link_distribution(name: str, target: Path) -> None:
    """Put an installed distribution into a folder of packages, without copying it."""
    found = distribution(name)
    for file in found.files or ():
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (target / top).exists():
            (target / top).symlink_to(Path(str(found.locate_file(top))))


@pytest.mark.slow
def test_the_wheel_imports_without_torch_and_without_the_service(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "packages"
    target.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    assert wheel.name.startswith("temper-")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    for name in set(required("temper", "client")):
        link_distribution(name, target)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    done = subprocess.run(
        [environment / "bin" / "python", "-c", _CHECK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, loaded = done.stdout.splitlines()
    assert str(target) in where
    assert _HEAVY.isdisjoint(loaded.split())
