"""The `temper` command."""

import sys

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
        Screen(stderr=True).print(*lines, sep="\n", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
