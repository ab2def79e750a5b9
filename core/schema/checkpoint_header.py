"""The header of a checkpoint file, as far as it is read without torch."""

import json
from pathlib import Path

KEY = "temper"
"""The key of the header in the metadata of the safetensors file."""
_MOST_BYTES = 100 * 2**20


def read_architecture(path: Path) -> str | None:
    """Read the name of the network; None where the file is no checkpoint. Loading it gives the reason."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            content = file.read(length) if length <= _MOST_BYTES else b""
        architecture = json.loads(json.loads(content)["__metadata__"][KEY])["blueprint"]["architecture"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return architecture if isinstance(architecture, str) else None
