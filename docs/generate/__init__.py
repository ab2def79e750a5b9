"""The generated pages of docs/reference/. tests/docs/test_reference.py compares them with the files."""

from pathlib import Path

from docs.generate import api, command_line, python, settings, spec

REFERENCE = Path(__file__).parents[1] / "reference"


def pages() -> dict[str, str]:
    """Generate every page: file name -> Markdown."""
    return {
        "settings.md": settings.page(),
        "spec.md": spec.page(),
        "api.md": api.page(),
        "problems.md": api.problems_page(),
        "library.md": python.library_page(),
        "client.md": python.client_page(),
        "command-line.md": command_line.page(),
    }
