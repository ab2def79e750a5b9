"""Verdicts per point: how they become a report, how the parts of an evaluation merge, how a broken one goes on."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from core.attacks import State
from core.catalog import NORMS, Norm
from core.checkpoint import deciding, write_file
from core.doubts import doubts_from_square
from core.errors import BadInput
from core.events import AttackRecord, Flag, Part, Rate, Report, Reports, Saved
from core.spec import Engine, Protocol

KEPT = "verdicts.safetensors"
"""Where in the output folder of a run an evaluation under way keeps what it has found."""

_KEY = "temper-verdicts"
_STATES_KEPT = 2
# So often, what is found on the way is kept; less often where it is more than this a second, so that whoever takes it
# elsewhere keeps up.
_SECONDS = 10.0
_BYTES_PER_SECOND = 1e6


def digits(right: Tensor) -> str:
    """Write verdicts (points,) as a string: 1 where the model is right, 0 where it is not."""
    return "".join("01"[verdict] for verdict in right.tolist())


def rate(count: int, total: int) -> Rate:
    """Turn a count into a share with its 95 % score interval (Wilson 1927)."""
    z = 1.959964
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The share itself, where rounding would leave it outside its own interval.
    low = max(0.0, centre - spread) if count else 0.0
    high = min(1.0, centre + spread) if count < total else 1.0
    return Rate(value=share, count=count, total=total, low=low, high=high)


def report(
    *,
    protocol: Protocol,
    engine: Engine,
    seed: int,
    batch_size: int,
    eps: dict[Norm, float],
    clean: str,
    robust: dict[Norm, str],
    records: Sequence[AttackRecord],
    flags: Iterable[Flag],
    seconds: float,
    part: Part | None = None,
) -> Report:
    """Sum up verdicts: clean, and robust per norm, one digit a point. A point counts for the union if all are 1."""
    points = len(clean)
    union = "".join("01"["0" not in verdicts] for verdicts in zip(*robust.values(), strict=True))
    return Report(
        protocol=protocol,
        engine=engine,
        examples=points,
        seed=seed,
        batch_size=batch_size,
        eps=eps,
        clean=rate(clean.count("1"), points),
        robust={norm: rate(verdicts.count("1"), points) for norm, verdicts in robust.items()},
        union=rate(union.count("1"), points),
        average=sum(verdicts.count("1") for verdicts in robust.values()) / (len(robust) * points),
        attacks=tuple(records),
        flags=(*flags, *doubts_from_square(records, points)),
        verdicts={"clean": clean, **robust, "union": union},
        seconds=seconds,
        part=part,
    )


def merge(parts: Sequence[Reports]) -> Reports:
    """Put the reports of all parts of one evaluation together: what the whole would have reported.

    Raises BadInput where parts are missing, come twice, or are not of one evaluation.
    """
    found = sorted(
        ((reports.after.part, reports.after, reports) for reports in parts if reports.after and reports.after.part),
        key=lambda one: one[0].first,
    )
    if len(found) < len(parts) or not found:
        raise BadInput(
            "one of these is not a part of an evaluation",
            hint="give the reports of: python -m core evaluate ... --shard I/N",
            field="merge",
        )
    _check_parts([part for part, _, _ in found])
    first = found[0][2]
    for _, _, other in found[1:]:
        if _identity(other) != _identity(first):
            raise BadInput(
                "these are parts of different evaluations: spec, model, data or versions differ",
                hint="run all shards with the same spec, model, data, version of Temper and release of torch; the "
                "devices may differ",
                field="merge",
            )
    merged = _merged([report for _, report, _ in found])
    return Reports(before=None, after=merged, run=first.run)


def _check_parts(parts: Sequence[Part]) -> None:
    count = parts[0].count
    missing = sorted(set(range(1, count + 1)) - {part.index for part in parts})
    if missing or len(parts) != count or {part.count for part in parts} != {count}:
        told = f"missing: {', '.join(f'{index}/{count}' for index in missing)}" if missing else "some come twice"
        raise BadInput(
            f"{len(parts)} reports do not make one evaluation of {count} shards; {told}",
            hint="give the report of each shard once",
            field="merge",
        )


def _identity(reports: Reports) -> tuple[object, ...]:
    """What all parts of one evaluation have in common."""
    assert reports.after
    run = reports.run
    known = (run.spec, run.base_sha256, run.data_sha256, deciding(run.versions)) if run else ()
    after = reports.after
    return (*known, after.protocol, after.engine, after.seed, after.batch_size, after.eps)


def _merged(parts: Sequence[Report]) -> Report:
    first = parts[0]
    assert all(a.part and b.part and a.part.first + a.examples == b.part.first for a, b in pairwise(parts))
    return report(
        protocol=first.protocol,
        engine=first.engine,
        seed=first.seed,
        batch_size=first.batch_size,
        eps=first.eps,
        clean="".join(part.verdicts["clean"] for part in parts),
        robust={norm: "".join(part.verdicts[norm] for part in parts) for norm in NORMS if norm in first.eps},
        records=[_sum(records) for records in zip(*(part.attacks for part in parts), strict=True)],
        # What Square says is judged anew for the whole; the rest is looked for on the first points alone.
        flags=[flag for part in parts for flag in part.flags if flag.code != "square_improves"],
        seconds=sum(part.seconds for part in parts),
    )


def _sum(records: Sequence[AttackRecord]) -> AttackRecord:
    return AttackRecord(
        norm=records[0].norm,
        attack=records[0].attack,
        attacked=sum(record.attacked for record in records),
        robust=sum(record.robust for record in records),
        seconds=sum(record.seconds for record in records),
    )


class Kept:
    """What an evaluation under way has found, in a file, so that a broken one goes on instead of starting over: the
    verdicts of each attack on each group of points, and where the attack under way stands."""

    def __init__(self, path: Path | None = None, *, kind: Literal["state", "verdicts"] | None = None) -> None:
        """path: with none, nothing is kept. kind: what its states are called, for whoever takes them elsewhere; with
        none, there are none."""
        self._path = path
        self.kind = kind
        self._identity = ""
        self._found = _Found()
        self._saved = 0
        self._kept_at = self._saved_at = time.monotonic()
        self._size = 0

    def begin(self, identity: Callable[[], str]) -> bool:
        """Begin an evaluation of this identity: take up what such a one left at the path, or as a state beside it, and
        remove what others left. Say whether there was any."""
        if not self._path:
            return False
        self._identity = identity()
        left = {path: self._read(path) for path in (self._path, *self._states()) if path.exists()}
        for path, found in left.items():
            if found is None:
                path.unlink()
        # The count goes on, so that what is kept later has the higher number, whatever it is of.
        newest = max((found for found in left.values() if found), key=lambda found: found.steps, default=None)
        self._found = newest or _Found(steps=self.steps)
        self._saved = self.steps
        self._kept_at = self._saved_at = time.monotonic()
        return newest is not None

    @property
    def steps(self) -> int:
        """How often something was kept."""
        return self._found.steps

    def get(self, key: str) -> str | None:
        """Give the verdicts that were put under the key."""
        return self._found.verdicts.get(key)

    def put(self, key: str, verdicts: Tensor) -> None:
        """Keep verdicts (points,) under a key: an attack is over."""
        self._found.verdicts[key] = digits(verdicts)
        self._keep("", {})

    def state(self, key: str) -> State | None:
        """Give where an attack stood, if it is the one under this key."""
        return self._found.state if self._found.under_way == key else None

    @property
    def due(self) -> bool:
        """Whether it is time to keep where an attack stands."""
        return self._path is not None and self._is_due(self._kept_at)

    def stand(self, key: str, state: State) -> None:
        """Keep where the attack under this key stands."""
        self._keep(key, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})

    def save(self, *, now: bool = False) -> Iterator[Saved]:
        """Write what is kept into a state of its own, which stays as it is for whoever takes it elsewhere, unless that
        was done a moment ago or nothing is new. The last two stay. now: whatever the time."""
        if not (self._path and self.kind) or self.steps == self._saved or not (now or self._is_due(self._saved_at)):
            return
        path = self._path.with_name(f"{self._path.stem}-{self.steps:06}{self._path.suffix}")
        content = self._content()
        sha256 = write_file(path, content)
        self._saved, self._saved_at = self.steps, time.monotonic()
        for old in self._states()[:-_STATES_KEPT]:
            old.unlink()
        yield Saved(kind=self.kind, path=str(path), sha256=sha256, size=len(content), step=self.steps, epoch=0)

    def close(self) -> None:
        """Remove the files: the evaluation is over."""
        if self._path:
            for path in (self._path, *self._states()):
                path.unlink(missing_ok=True)

    def _is_due(self, last: float) -> bool:
        return time.monotonic() - last >= max(_SECONDS, self._size / _BYTES_PER_SECOND)

    def _keep(self, key: str, state: State) -> None:
        self._found.under_way, self._found.state = key, state
        self._found.steps += 1
        if self._path:
            content = self._content()
            write_file(self._path, content)
            self._size, self._kept_at = len(content), time.monotonic()

    def _states(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}")) if self._path else []

    def _content(self) -> bytes:
        found = {"identity": self._identity, **vars(self._found)}
        return serialize(found.pop("state"), metadata={_KEY: json.dumps(found)})

    def _read(self, path: Path) -> "_Found | None":
        # A file of another evaluation, or one that cannot be read, is no reason to stop: it is made anew.
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads((file.metadata() or {})[_KEY])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            same = found.pop("identity") == self._identity
            return _Found(**found, state=state) if same else None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            return None


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


def read_digits(verdicts: str, device: torch.device) -> Tensor:
    """Read what `digits` wrote."""
    return torch.tensor([verdict == "1" for verdict in verdicts], device=device)
