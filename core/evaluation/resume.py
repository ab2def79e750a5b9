"""The resumable state of an evaluation: what it has found so far, in one safetensors file; nothing is ever pickled.

The file holds what is known per point after each attack on each group of points, and the state of the attack under way.
It lies in the output folder of the run, and is removed when the evaluation is over.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
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
from core.schema.errors import DiskFull
from core.schema.events import Saved

STATE_FILE = "verdicts.safetensors"
"""The name of the file in the output folder of a run."""

_KEY = "temper-verdicts"
_SNAPSHOTS = 2


class _Interval(NamedTuple):
    """How often a file may be written."""

    seconds: float
    """Minimum time between two writes."""
    bytes_per_second: float
    """Maximum mean rate of writing."""

    def is_over(self, last: float, size: int) -> bool:
        """Whether a file of `size` bytes may be written, when the last one was written at the time `last`."""
        return time.monotonic() - last >= max(self.seconds, size / self.bytes_per_second)


# The file itself, for a process that is killed; and snapshots to upload, for a machine that is lost.
_SAVE_INTERVAL = _Interval(10, 1e6)
_SNAPSHOT_INTERVAL = _Interval(60, 1e5)


@dataclass
class _Content:
    """What is in the file."""

    saves: int = 0
    """How often the file was written, in the evaluations of this run so far."""
    columns: dict[str, str] = field(default_factory=dict)
    """Whole numbers per point, separated by spaces, by the key of attack, group and column."""
    under_way: str = ""
    """The key of the attack and group that `attack` is the state of."""
    attack: State = field(default_factory=dict)


class EvaluationState:
    """The state of the evaluations of a run, which follow one another."""

    def __init__(self, path: Path | None = None, *, kind: Literal["state", "verdicts"] | None = None) -> None:
        """path: the file; with None nothing is written. kind: that of the `Saved` events of snapshots;
        None for no snapshots."""
        self._path = path
        self.kind = kind
        self._identity = ""
        self._content = _Content()
        self._size = 0
        self._sha256 = ""
        self._saved_at = self._snapshot_at = time.monotonic()
        self._saves_in_snapshot = 0
        self._snapshots: list[Path] = []

    def begin(self, identity: Callable[[], str]) -> bool:
        """Begin an evaluation, from the newest file of the same identity at the path or among the snapshots beside it.
        Return whether there is one. The count of saves continues, so that later files have higher numbers."""
        self._content = _Content(saves=self.saves)
        self._saved_at = self._snapshot_at = time.monotonic()
        if not self._path:
            return False
        self._identity = identity()
        files = {path: self._read(path) for path in (self._path, *self._list_snapshots()) if path.exists()}
        self._snapshots = [path for path, content in files.items() if content and path != self._path]
        newest = max(
            (content for content in files.values() if content), key=lambda content: content.saves, default=None
        )
        self._content = newest or self._content
        self._saves_in_snapshot = self.saves
        return newest is not None

    @property
    def saves(self) -> int:
        """How often the state was saved."""
        return self._content.saves

    def get(self, key: str) -> Tensor | None:
        """Give the column (points,) that was put under the key, as int64."""
        column = self._content.columns.get(key)
        return None if column is None else torch.tensor([int(number) for number in column.split()])

    def put(self, columns: Mapping[str, Tensor]) -> None:
        """Save columns (points,) of whole numbers or bool under their keys: an attack is over."""
        for key, column in columns.items():
            self._content.columns[key] = " ".join(map(str, column.long().tolist()))
        self._save("", {})

    def get_attack(self, key: str) -> State | None:
        """Give the state of the attack under way, if it is the one under this key."""
        return self._content.attack if self._content.under_way == key else None

    @property
    def is_due(self) -> bool:
        """Whether it is time to save the state of the attack under way."""
        return self._path is not None and _SAVE_INTERVAL.is_over(self._saved_at, self._size)

    def put_attack(self, key: str, state: State) -> None:
        """Save the state of the attack under this key, unless the disk is full."""
        try:
            self._save(key, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})
        except DiskFull:
            self._save("", {})

    def snapshot(self, *, now: bool = False) -> Iterator[Saved]:
        """Make a copy that does not change, for upload, when the last one is old enough and something is new. The
        newest two stay. now: however old the last one is."""
        if not (self._path and self.kind) or self.saves == self._saves_in_snapshot:
            return
        if not (now or _SNAPSHOT_INTERVAL.is_over(self._snapshot_at, self._size)):
            return
        path = self._path.with_name(f"{self._path.stem}-{self.saves:06}{self._path.suffix}")
        path.unlink(missing_ok=True)
        try:
            # The file is never changed in place, but replaced.
            os.link(self._path, path)
        except OSError:
            # Not every file system has hard links.
            try:
                shutil.copyfile(self._path, path)
            except OSError:
                path.unlink(missing_ok=True)
                return
        self._saves_in_snapshot, self._snapshot_at = self.saves, time.monotonic()
        self._snapshots.append(path)
        for old in self._snapshots[:-_SNAPSHOTS]:
            old.unlink(missing_ok=True)
        del self._snapshots[:-_SNAPSHOTS]
        yield Saved(kind=self.kind, path=str(path), sha256=self._sha256, size=self._size, step=self.saves, epoch=0)

    def close(self) -> None:
        """Remove the files: the evaluation is over."""
        if self._path:
            for path in (self._path, *self._list_snapshots(), *self._path.parent.glob(f".{self._path.name}.partial")):
                path.unlink(missing_ok=True)

    def _save(self, key: str, attack: State) -> None:
        self._content.under_way, self._content.attack = key, attack
        self._content.saves += 1
        if self._path:
            content = {"identity": self._identity, **vars(self._content)}
            file = serialize(content.pop("attack"), metadata={_KEY: json.dumps(content)})
            self._sha256 = write_file(self._path, file)
            self._size, self._saved_at = len(file), time.monotonic()

    def _list_snapshots(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}")) if self._path else []

    def _read(self, path: Path) -> _Content | None:
        # A file that cannot be read, or is of another evaluation, does not stop this one: it is written again.
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            with safe_open(path, framework="pt") as file:
                content = json.loads((file.metadata() or {})[_KEY])
                attack = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            if content.pop("identity") == self._identity:
                return _Content(**content, attack=attack)
        return None
