"""The generated pages are those that the code of now gives."""

import pytest

from app.platform.settings import Settings
from core.schema.record import field_docstrings
from core.schema.spec import SPECS
from docs.generate import REFERENCE, pages
from tests.support.documentation import ROOT


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return pages()


def test_reference_is_what_the_code_says(generated: dict[str, str]) -> None:
    written = {path.name: path.read_text() for path in REFERENCE.glob("*.md")}
    stale = [name for name in generated.keys() | written.keys() if generated.get(name) != written.get(name)]
    assert stale == [], f"run `python -m docs.generate` in {ROOT.name}, or `make docs`"


def test_reference_has_every_setting_with_its_description(generated: dict[str, str]) -> None:
    meanings = field_docstrings(Settings)
    for name in Settings.model_fields:
        assert f"| `TEMPER_{name.upper()}` |" in generated["settings.md"]
        assert f"| {' '.join(meanings[name].split())} |".replace("\\|", "|") in generated["settings.md"]


def test_reference_has_every_field_of_every_spec(generated: dict[str, str]) -> None:
    for kind, model in SPECS.items():
        section = generated["spec.md"].split(f"## kind `{kind}`")[1].split("\n## ")[0]
        assert all(f"| `{name}` |" in section for name in model.model_fields)
        assert "|  |\n" not in section  # a field without a meaning
