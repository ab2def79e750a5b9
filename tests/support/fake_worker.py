"""`python -m worker.main` with the fake trainer."""

import sys
from dataclasses import replace
from pathlib import Path

from worker import main, polling
from worker.processes.training_process import core_command


def fake_command(claim, folder, registry):
    """The command of the real training process, to the fake one."""
    command = core_command(claim, folder, registry)
    rest = command[command.index("core") + 1 :]
    return [sys.executable, "-S", str(Path(__file__).parent / "fake_training_process.py"), *rest]


if __name__ == "__main__":
    workplace = replace(polling.open_workplace(), command=fake_command)
    sys.exit(main.serve(workplace))
