"""All that a training run needs to go on from where it was cut off, in one safetensors file; nothing is ever pickled.

`state-<step>.safetensors` lies in the run's output folder. A new one is there whole or not at all, and the last two are
kept, so that one is always good. Where they came from and how far they got is one JSON object in the file's header.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from core import checkpoint
from core.schema.catalog import Norm
from core.schema.errors import BadInput
from core.schema.events import NormCount, Saved, Started
from core.schema.report import Rate, Report
from core.schema.spec import Spec

_KEY = "temper-state"
_KEPT = 2
# What may change between the parts of a run without changing its weights beyond float noise.
_FREE = frozenset({"name", "metadata", "priority", "gpus", "save_minutes"})


class Best(BaseModel):
    """The best weights so far."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Training steps behind them."""
    union: Rate
    """Held-out images that they keep right in every norm."""


class Progress(BaseModel):
    """How far a run has got, besides its tensors."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    """Version of this header."""
    spec: Spec
    """The resolved spec of the run."""
    base_sha256: str | None
    """Hash of the weights file that the run started from; null for random weights."""
    data_sha256: str
    """Hash of the images and labels."""
    step: int
    """Training steps done."""
    epoch: float
    """Epochs done, as a fraction."""
    seconds: float
    """Seconds of training so far."""
    counts: dict[Norm, NormCount]
    """The method's counts."""
    parts: int
    """In how many parts a batch is computed."""
    best: Best | None
    """The best weights so far, where epochs are monitored."""
    stopped_at: int | None
    """The step at which somebody stopped the run early."""
    before: Report | None
    """The evaluation of the base model."""


@dataclass(frozen=True)
class State:
    """What a state file holds."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    """By name: the model's, the optimiser's, and the states of the random streams."""


def save(folder: Path, state: State) -> Saved:
    """Write a state file, then remove all but the last two. Raises DiskFull when there is no room."""
    progress = state.progress
    path = folder / f"state-{progress.step:09}.safetensors"
    # Copies, for safetensors refuses what shares memory or lies in another order.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.tensors.items()}
    content = serialize(tensors, metadata={_KEY: progress.model_dump_json()})
    sha256 = checkpoint.write_file(path, content)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()
    return Saved(
        kind="state", path=str(path), sha256=sha256, size=len(content), step=progress.step, epoch=progress.epoch
    )


def latest(folder: Path, started: Started) -> State | None:
    """Find the state that a run can go on from; None where there is none.

    A file that cannot be read is passed over for the one before it. Raises BadInput when none can be read, and when it
    belongs to a run of another spec or other inputs.
    """
    files = _files(folder)
    for path in reversed(files):
        with suppress(SafetensorError, ValidationError, ValueError, OSError):
            state = _read(path)
            _check_same_run(path, state.progress, started)
            return state
    if files:
        raise BadInput(
            f"no state in {folder} can be read",
            hint="start anew with --restart, or choose another --output",
            field="output",
        )
    return None


def clear(folder: Path) -> None:
    """Remove all state files, and what was left of one that was cut off while it was written."""
    for path in (*_files(folder), *folder.glob(".state-*.partial")):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))


def _read(path: Path) -> State:
    with safe_open(path, framework="pt") as file:
        progress = Progress.model_validate(json.loads((file.metadata() or {}).get(_KEY, "")))
        return State(progress, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # not a mapping


def _check_same_run(path: Path, progress: Progress, started: Started) -> None:
    """Refuse another run's state: to go on from it would give weights that no spec describes."""
    then, now = progress.spec.model_dump(mode="json"), started.spec.model_dump(mode="json")
    differing = [name for name in now if name not in _FREE and then.get(name) != now[name]]
    if progress.base_sha256 != started.base_sha256:
        differing.append("the base model's weights")
    if progress.data_sha256 != started.data_sha256:
        differing.append("the images")
    if differing:
        raise BadInput(
            f"{path} is the state of another run, which differs in {', '.join(differing)}",
            hint="choose another --output, or give up that run with --restart",
            field="output",
        )
