"""The reference of settings: every environment variable of the service."""

import os
from pathlib import Path
from unittest.mock import patch

from app.platform.settings import Settings
from core.schema.record import field_docstrings
from docs.generate import markdown
from docs.generate.markdown import code

_CLIENT = (
    ("TEMPER_URL", "that of the credentials file", "Address of the service that the client and `temper` talk to."),
    ("TEMPER_API_KEY", "that of the credentials file", "API key that the client and `temper` send."),
)


def page() -> str:
    """List every setting with its default and meaning."""
    with patch.dict(
        os.environ, {name: value for name, value in os.environ.items() if not name.startswith("TEMPER_")}, clear=True
    ):
        values = Settings()
    rows = [
        (code(f"TEMPER_{name.upper()}"), _default(getattr(values, name)), meaning)
        for name, meaning in field_docstrings(Settings).items()
    ]
    return markdown.page(
        "Settings",
        "The API and the workers read these environment variables. A file in `/run/secrets`, or in the folder that "
        "`TEMPER_SECRETS_DIR` names, sets the variable whose name in lower case is the file's: the better place for a "
        "secret. `temper serve` has options for host, port and data folder, which take precedence.",
        markdown.table(("variable", "default", "meaning"), rows),
        "## Client",
        "Without these variables the client reads `credentials.json` in the data folder of a service on this machine, "
        "and sends its key to its address only.",
        markdown.table(("variable", "default", "meaning"), ((code(name), *rest) for name, *rest in _CLIENT)),
    )


def _default(value: object) -> str:
    match value:
        case None | () | "":
            return "none"
        case bool():
            return code(str(value).lower())
        case tuple() | list() | frozenset():
            return code(",".join(map(str, value)))
        case _:
            return code(str(value).replace(str(Path.home()), "~"))
