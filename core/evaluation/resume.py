"""How a broken evaluation goes on: what it has found so far, in one safetensors file; nothing is ever pickled.

The file holds the verdicts of each attack on each group of points, and the state of the attack under way. It lies in
the output folder of the run, and is gone when the evaluation is over.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from core.attacks import State
from core.checkpoint import write_file
from core.evaluation.report import digits
from core.schema.errors import DiskFull
from core.schema.events import Saved

STATE_FILE = "verdicts.safetensors"
"""Where in the output folder of a run an evaluation under way keeps what it has found."""

_KEY = "temper-verdicts"
_STATES_KEPT = 2


class _Pace(NamedTuple):
    """How seldom something is written."""

    seconds: float
    """So many lie between one time and the next at least."""
    bytes_per_second: float
    """And so many that no more is written than this."""

    def is_due(self, last: float, size: int) -> bool:
        """Whether a file of so many bytes may be written, the last one being of that moment."""
        return time.monotonic() - last >= max(self.seconds, size / self.bytes_per_second)


# On this machine, for a process that was killed; and for whoever takes it elsewhere, in case the machine is lost.
_HERE = _Pace(10, 1e6)
_ELSEWHERE = _Pace(60, 1e5)


@dataclass
class _Found:
    """What is in the file."""

    steps: int = 0
    """How often something was kept."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """By attack and group."""
    under_way: str = ""
    """The key of the attack and group whose state this is."""
    state: State = field(default_factory=dict)


class EvaluationState:
    """What the evaluations of a run, one after the other, have found so far."""

    def __init__(self, path: Path | None = None, *, kind: Literal["state", "verdicts"] | None = None) -> None:
        """path: with none, nothing is kept. kind: what copies for elsewhere are called; with none, there are none."""
        self._path = path
        self.kind = kind
        self._identity = ""
        self._found = _Found()
        self._size = 0
        self._sha256 = ""
        self._kept_at = self._copied_at = time.monotonic()
        self._copied = 0
        self._copies: list[Path] = []

    def begin(self, identity: Callable[[], str]) -> bool:
        """Begin an evaluation: take up what one of the same identity left at the path, or as a copy beside it. Say
        whether there was any. The count goes on, so that what is kept later has the higher number."""
        self._found = _Found(steps=self.steps)
        self._kept_at = self._copied_at = time.monotonic()
        if not self._path:
            return False
        self._identity = identity()
        left = {path: self._read(path) for path in (self._path, *self._beside()) if path.exists()}
        self._copies = [path for path, found in left.items() if found and path != self._path]
        newest = max((found for found in left.values() if found), key=lambda found: found.steps, default=None)
        self._found = newest or self._found
        self._copied = self.steps
        return newest is not None

    @property
    def steps(self) -> int:
        """How often something was kept."""
        return self._found.steps

    def get(self, key: str) -> Tensor | None:
        """Give the verdicts (points,) that were put under the key."""
        known = self._found.verdicts.get(key)
        return None if known is None else torch.tensor([verdict == "1" for verdict in known])

    def put(self, key: str, verdicts: Tensor) -> None:
        """Keep verdicts (points,) under a key: an attack is over."""
        self._found.verdicts[key] = digits(verdicts)
        self._keep("", {})

    def state(self, key: str) -> State | None:
        """Give the state of an attack, if it is the one under this key."""
        return self._found.state if self._found.under_way == key else None

    @property
    def due(self) -> bool:
        """Whether it is time to keep the state of an attack."""
        return self._path is not None and _HERE.is_due(self._kept_at, self._size)

    def stand(self, key: str, state: State) -> None:
        """Keep the state of the attack under this key, where there is room for it."""
        try:
            self._keep(key, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})
        except DiskFull:
            self._keep("", {})

    def copy(self, *, now: bool = False) -> Iterator[Saved]:
        """Make a copy that stays as it is for whoever takes it elsewhere, unless that was done a short while ago or
        nothing is new. The last two stay. now: however short."""
        if not (self._path and self.kind) or self.steps == self._copied:
            return
        if not (now or _ELSEWHERE.is_due(self._copied_at, self._size)):
            return
        path = self._path.with_name(f"{self._path.stem}-{self.steps:06}{self._path.suffix}")
        path.unlink(missing_ok=True)
        try:
            # What is kept is never changed, but replaced.
            os.link(self._path, path)
        except OSError:
            # Not every file system knows links.
            try:
                shutil.copyfile(self._path, path)
            except OSError:
                path.unlink(missing_ok=True)
                return
        self._copied, self._copied_at = self.steps, time.monotonic()
        self._copies.append(path)
        for old in self._copies[:-_STATES_KEPT]:
            old.unlink(missing_ok=True)
        del self._copies[:-_STATES_KEPT]
        yield Saved(kind=self.kind, path=str(path), sha256=self._sha256, size=self._size, step=self.steps, epoch=0)

    def close(self) -> None:
        """Remove the files: the evaluation is over."""
        if self._path:
            for path in (self._path, *self._beside(), *self._path.parent.glob(f".{self._path.name}.partial")):
                path.unlink(missing_ok=True)

    def _keep(self, key: str, state: State) -> None:
        self._found.under_way, self._found.state = key, state
        self._found.steps += 1
        if self._path:
            found = {"identity": self._identity, **vars(self._found)}
            content = serialize(found.pop("state"), metadata={_KEY: json.dumps(found)})
            self._sha256 = write_file(self._path, content)
            self._size, self._kept_at = len(content), time.monotonic()

    def _beside(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}")) if self._path else []

    def _read(self, path: Path) -> _Found | None:
        # A file of another evaluation, or one that cannot be read, is no reason to stop: it is made anew.
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            with safe_open(path, framework="pt") as file:
                found = json.loads((file.metadata() or {})[_KEY])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            if found.pop("identity") == self._identity:
                return _Found(**found, state=state)
        return None
