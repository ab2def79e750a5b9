"""The header of a checkpoint file, as far as it is read without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from core.schema.catalog import NORMS, Norm

KEY = "temper"
"""The key of the header in the metadata of the safetensors file."""
_MOST_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Origins:
    """What a checkpoint says of itself that decides defaults of a run which starts from it."""

    architecture: str
    """The name of its network."""
    dataset: str = ""
    """The data set that it was trained on; empty where it names none."""
    eps: Mapping[Norm, float] = field(default_factory=dict)
    """The radii of the run that made it; empty for imported weights."""


def read_origins(path: Path) -> Origins | None:
    """Read what a checkpoint says of itself; None where the file is no checkpoint. Loading it gives the reason."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            content = file.read(length) if length <= _MOST_BYTES else b""
        header = json.loads(json.loads(content)["__metadata__"][KEY])
        architecture = header["blueprint"]["architecture"]
        made = header.get("spec") or header.get("origin") or {}
        dataset = made.get("dataset") or ""
        eps = made.get("eps") or {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(architecture, str) or not isinstance(dataset, str):
        return None
    return Origins(architecture, dataset, _radii(eps))


def _radii(eps: Any) -> dict[Norm, float]:
    # Imported weights claim one radius, in a norm that stands beside it.
    known = isinstance(eps, dict) and all(norm in NORMS and isinstance(radius, float) for norm, radius in eps.items())
    return cast("dict[Norm, float]", eps) if known else {}
