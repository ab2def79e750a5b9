"""A worker with the fake training process, whose checkpoints are those of the shipped digits model."""

import sys
from dataclasses import replace
from pathlib import Path

from tests.support.fake_worker import fake_command
from worker import main, polling

WEIGHTS = Path(__file__).parents[2] / "core" / "models" / "weights" / "digits-cnn-linf.safetensors"


def command(claim, folder, registry):
    """The command of the fake training process, with the weights that it delivers."""
    return [*fake_command(claim, folder, registry), "--weights-to-deliver", str(WEIGHTS)]


if __name__ == "__main__":
    sys.exit(main.serve(replace(polling.open_workplace(), command=command)))
