"""The `temper` command."""

import os
import sys
from typing import NoReturn

from client.commands import app
from client.credentials import credentials_file
from client.display import Screen
from client.errors import Refused, TemperError


def main() -> None:
    """Run a command; say in words what went wrong."""
    try:
        app()
    except TemperError as error:
        lines = [str(error)]
        if isinstance(error, Refused) and error.problem.code == "unauthorized":
            lines.append(f"temper takes the key from TEMPER_API_KEY, else from {credentials_file()}")
        _end(*lines, status=error.exit_code)
    except OSError as error:
        # What is left of the answer goes nowhere, or Python would fail once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(f"cannot write to {error.filename or 'standard output'}: {error.strerror}", status=1)


def _end(*lines: str, status: int) -> NoReturn:
    Screen(stderr=True).print(*lines, sep="\n", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
