"""Named constants of the service with other values: for the tests of this process, or of processes that it starts.

A constant is named by its module and its name: `app.jobs.watch.WATCH_SECONDS`.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

SITE = Path(__file__).parent / "site"
"""A process with this folder in its PYTHONPATH reads the variable below as it starts."""
VARIABLE = "TEMPER_TEST_CONSTANTS"


@contextmanager
def constants(values: Mapping[str, Any]) -> Iterator[None]:
    """Change constants of this process for as long as the block runs."""
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch(name, value))
        yield


def environment_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Write the variable that changes constants of a process."""
    return {VARIABLE: json.dumps(values)}


def install() -> None:
    """Change the constants that the environment names, in each module as soon as it is imported."""
    if VARIABLE in os.environ:
        sys.meta_path.insert(0, _Changing(json.loads(os.environ[VARIABLE])))


def apply() -> None:
    """Change the constants that the environment names in this process, whose modules are imported already."""
    for name, value in json.loads(os.environ.get(VARIABLE, "{}")).items():
        mock.patch(name, value).start()


class _Changing(importlib.abc.MetaPathFinder):
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            module, _, name = path.rpartition(".")
            self._values.setdefault(module, {})[name] = value

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of which constants are to change."""
        if fullname not in self._values:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path, self._values[fullname])
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, values: Mapping[str, Any]) -> None:
        super().__init__(fullname, path)
        self._values = values

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then change its constants."""
        super().exec_module(module)
        for name, value in self._values.items():
            assert hasattr(module, name), f"{module.__name__} has no {name}"
            setattr(module, name, value)
