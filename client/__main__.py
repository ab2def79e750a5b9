"""Entry point of the `temper` command."""

import gc
import os
import sys
from typing import NoReturn

from client.credentials import credentials_file
from client.errors import Refused, TemperError
from core.schema.exit_status import ExitStatus


def main() -> None:
    """Run a command; print errors without a traceback. It ends with a status of `core.schema.exit_status`."""
    # What a command imports stays: searching it for garbage takes a tenth of the time of most commands.
    gc.set_threshold(100_000)
    from client.cli.app import app

    out = sys.stdout
    try:
        try:
            app()
        finally:
            # Here, because an error at Python's own exit would be a traceback.
            out.flush()
            if sys.stdout is not out:  # typer has replaced it, because nothing reads it any more
                raise BrokenPipeError
    except TemperError as error:
        lines = [str(error)]
        if isinstance(error, Refused) and error.problem.code == "unauthorized":
            lines.append(f"temper takes the key from TEMPER_API_KEY, else from {credentials_file()}")
        _end(*lines, status=error.exit_status)
    except OSError as error:
        # The rest of the output is discarded; otherwise Python would fail again when it flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(ExitStatus.BROKEN_PIPE)
        _end(f"cannot write to {error.filename or 'standard output'}: {error.strerror}", status=ExitStatus.FAILED)


def _end(*lines: str, status: int) -> NoReturn:
    from client.display.screen import Screen

    Screen(stderr=True).print(*lines, sep="\n", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
