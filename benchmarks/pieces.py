"""A file in pieces, for where no file may be larger than so many bytes: cut up, and put together again."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint import hash_file, write_file
from core.schema.errors import BadWeights


@dataclass(frozen=True)
class Piece:
    """A part of a file, as a file."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Whole:
    """A file, and the pieces it is in, in order."""

    name: str
    sha256: str
    size: int
    """Bytes."""
    pieces: tuple[Piece, ...]


def cut(path: Path, folder: Path, *, size: int) -> Whole:
    """Write a file into `folder` in pieces of at most `size` bytes, named after it and numbered from 1."""
    content = path.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for number, first in enumerate(range(0, len(content), size), start=1):
        name = f"{path.name}.{number}"
        pieces.append(Piece(name, write_file(folder / name, content[first : first + size])))
    return Whole(path.name, hashlib.sha256(content).hexdigest(), len(content), tuple(pieces))


def join(whole: Whole, folder: Path, path: Path) -> None:
    """Put the pieces in `folder` together at `path`. Raises BadWeights where one is missing or damaged."""
    for piece in whole.pieces:
        if hash_file(folder / piece.name) != piece.sha256:
            raise BadWeights(f"{piece.name} is damaged", hint="fetch it again", field="base_model")
    content = b"".join((folder / piece.name).read_bytes() for piece in whole.pieces)
    if hashlib.sha256(content).hexdigest() != whole.sha256:
        raise BadWeights(f"the pieces do not make {whole.name}", hint="fetch all of them again", field="base_model")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
