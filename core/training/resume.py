"""State files: all that a training run needs to continue after an interruption.

`state-<step>.safetensors` lies in the run's output folder. Its tensors are those of the trainer; a JSON object in the
file's metadata identifies the run and holds its counters. Nothing is pickled. A file is written whole or not at all,
and the last two are kept, so that a readable one remains when the newest is damaged.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from core import checkpoint
from core.schema.errors import BadInput
from core.schema.events import Saved, Started
from core.schema.progress import Rate, WarningRecord, Weights
from core.schema.report import Report
from core.schema.spec import Spec
from core.training.trainer import TrainerCounters, TrainerState

_KEY = "temper-state"
_KEPT = 2
# Fields of the spec that may change between two parts of a run: they change its weights by rounding at most.
_FREE = frozenset({"name", "metadata", "gpus", "save_minutes"})


class MonitoredWeights(BaseModel):
    """Weights that were evaluated on the held-out images after an epoch."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Training steps of these weights."""
    weights: Weights
    """Whether they are an average over the steps."""
    union: Rate
    """Held-out images that are robust in every norm at once."""


class StateHeader(BaseModel):
    """The metadata of a state file."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    """Version of this header."""
    spec: Spec
    """The resolved spec of the run."""
    base_sha256: str | None
    """Hash of the weights file that the run started from; null for random weights."""
    data_sha256: str
    """Hash of the images and labels."""
    trainer: TrainerCounters
    """The trainer's counters."""
    best: MonitoredWeights | None
    """The most robust weights after an epoch so far; null where no epoch was monitored."""
    last: MonitoredWeights | None
    """The more robust ones of the raw and the averaged weights after the last epoch that was monitored."""
    stopped_at: int | None
    """The step at which the run was stopped early; null where it was not."""
    before: Report | None
    """The evaluation of the base model; null where there was none."""
    warnings: tuple[WarningRecord, ...]
    """Reasons to doubt the run so far."""


@dataclass(frozen=True)
class RunState:
    """The content of a state file."""

    header: StateHeader
    trainer: TrainerState


def save(folder: Path, state: RunState) -> Saved:
    """Write a state file, then remove all but the last two. Raises DiskFull when the disk is full."""
    counters = state.header.trainer
    path = folder / f"state-{counters.step:09}.safetensors"
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.trainer.tensors.items()}
    content = serialize(tensors, metadata={_KEY: state.header.model_dump_json()})
    sha256 = checkpoint.write_file(path, content)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()
    return Saved(
        kind="state", path=str(path), sha256=sha256, size=len(content), step=counters.step, epoch=counters.epoch
    )


def latest(folder: Path, started: Started) -> RunState | None:
    """Read the newest state file of a run; None where there is none.

    A file that cannot be read is skipped for the one before it. started: identifies the run. Raises BadInput when there
    are files and none can be read, and when they belong to a run with another spec or other inputs.
    """
    files = _files(folder)
    for path in reversed(files):
        with suppress(SafetensorError, ValidationError, ValueError, OSError):
            state = _read(path)
            _check_same_run(path, state.header, started)
            return state
    if files:
        raise BadInput(
            f"no state in {folder} can be read",
            hint="start the run from its beginning with --restart, or choose another --output",
            field="output",
        )
    return None


def clear(folder: Path) -> None:
    """Remove all state files, and the remains of one whose writing was interrupted."""
    for path in (*_files(folder), *folder.glob(".state-*.partial")):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))


def _read(path: Path) -> RunState:
    with safe_open(path, framework="pt") as file:
        header = StateHeader.model_validate(json.loads((file.metadata() or {}).get(_KEY, "")))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return RunState(header, TrainerState(header.trainer, tensors))


def _check_same_run(path: Path, header: StateHeader, started: Started) -> None:
    """Refuse another run's state: continuing from it would give weights that no spec describes."""
    then, now = header.spec.model_dump(mode="json"), started.spec.model_dump(mode="json")
    differing = [name for name in now if name not in _FREE and then.get(name) != now[name]]
    if header.base_sha256 != started.base_sha256:
        differing.append("the base model's weights")
    if header.data_sha256 != started.data_sha256:
        differing.append("the images")
    if differing:
        raise BadInput(
            f"{path} is the state of another run, which differs in {', '.join(differing)}",
            hint="choose another --output, or discard that run with --restart",
            field="output",
        )
