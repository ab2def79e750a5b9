"""`temper models add` declares everything that the service takes about a model."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from app.schemas.catalogue import Model
from client.cli import assets
from core.schema.import_spec import ImportSpec

_MADE: dict[str, Any] = {
    **dict.fromkeys(Model.model_fields),
    "id": "model_1",
    "object": "model",
    "name": "mine",
    "source": "own",
    "status": "ready",
    "description": "w.pt.",
    "key": "ema",
    "other_keys": ["state_dict"],
    "alternatives": ["wide-resnet-28-10-silu"],
    "warnings": [],
}


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the service: collect what is declared about a model."""
    collected: dict[str, Any] = {}

    class Models:
        def add(self, path: str, *, name: str | None, on_progress: object, **declared: Any) -> Model:
            collected.update(declared)
            return Model.model_validate(_MADE)

    class Service:
        models = Models()

    @contextmanager
    def connect() -> Iterator[Service]:
        yield Service()

    monkeypatch.setattr(assets, "connect", connect)
    return collected


def test_every_field_of_an_import_is_an_option() -> None:
    assert set(ImportSpec.model_fields) <= set(inspect.signature(assets.add_model).parameters)


def test_options_are_declared_as_given_and_the_other_weights_are_told(declared: dict[str, Any]) -> None:
    given = {
        "published": "Carmon2019Unlabeled",
        "classes": "10",
        "mean": "0.49,0.48,0.45",
        "std": "0.2,0.2,0.2",
        "key": "model.ema",
    }
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    done = CliRunner().invoke(assets.models, ["add", "w.pt", *arguments])
    assert done.exit_code == 0, done.output
    assert declared == {**given, "classes": 10}
    spec = ImportSpec.model_validate(declared)
    assert (spec.mean, spec.std, spec.classes) == ((0.49, 0.48, 0.45), (0.2, 0.2, 0.2), 10)
    assert "do not tell it from wide-resnet-28-10-silu" in " ".join(done.output.split())
    assert "has the weights under ema; the file has others: add --key state_dict" in " ".join(done.output.split())
