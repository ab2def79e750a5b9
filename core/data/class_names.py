"""The names of classes, from a file beside labels that are numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from core.data.file_tree import Entry
from core.data.safe_zip import show
from core.schema.errors import BadDataset
from core.schema.strict_json import read_json

STEMS = ("class_names", "classes", "label_names", "labels_names", "categories")
"""The names, without suffix, of files and arrays that hold the names of the classes."""
FILES_IN_WORDS = "classes.txt with a name per line, or class_names.json with a list of names"
_MOST_BYTES = 2**20
"""The largest file of names that is read."""
_SUFFIXES = (".txt", ".json")


def is_names_file(name: str) -> bool:
    """Whether a file is named as one that holds the names of the classes."""
    path = PurePosixPath(name)
    return path.stem.casefold() in STEMS and path.suffix.casefold() in _SUFFIXES


def find_names_file(files: Iterable[Entry]) -> str | None:
    """Find the file with the names of the classes among the files of a set, if it is of a size that is read.

    Raises BadDataset where there are two.
    """
    small = (file.name for file in files if file.size <= _MOST_BYTES)
    found = sorted(name for name in small if is_names_file(name) and "/." not in f"/{name}")
    if len(found) > 1:
        raise BadDataset(
            f"the names of the classes are in {show(found[0])} and in {show(found[1])}",
            hint="keep one of these files",
            field="dataset",
        )
    return found[0] if found else None


def read_names(file: str, content: bytes) -> tuple[str, ...]:
    """Read the names of the classes in the order of their labels. Raises BadDataset.

    file: a `.txt` with a name per line, or a `.json` with a list, or with an object that maps either labels to names or
    names to labels.
    """
    try:
        text = content.decode("utf-8-sig")
        names = _of_json(text) if file.lower().endswith(".json") else text.splitlines()
    except ValueError as error:
        raise _bad(file, str(error)) from error
    while names and not str(names[-1]).strip():
        names = names[:-1]
    return check_names(file, names)


def check_names(where: str, names: Sequence[Any]) -> tuple[str, ...]:
    """Check a list of names of classes. where: what holds it, for errors. Raises BadDataset."""
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise _bad(where, "a name is missing or is no text" if names else "it holds no names")
    stripped = tuple(name.strip() for name in names)
    twice = next((name for name, count in Counter(stripped).items() if count > 1), None)
    if twice is not None:
        raise _bad(where, f"the name {show(twice)} occurs twice")
    return stripped


def _of_json(text: str) -> Sequence[Any]:
    found = read_json(text)
    if isinstance(found, list):
        return found
    if not isinstance(found, Mapping):
        raise ValueError("it is neither a list nor an object")
    pairs = list(found.items())
    if all(type(label) is int for _, label in pairs):
        pairs = [(str(label), name) for name, label in pairs]
    by_label = {int(label): name for label, name in pairs if label.isdecimal() and len(label) < 8}
    if sorted(by_label) != list(range(len(pairs))):
        raise ValueError(f"its labels are not the numbers from 0 to {len(pairs) - 1}")
    return [by_label[label] for label in range(len(pairs))]


def _bad(where: str, reason: str) -> BadDataset:
    return BadDataset(
        f"cannot read the names of the classes in {show(where)}: {reason}",
        hint=f"write {FILES_IN_WORDS}, in the order of the labels from 0",
        field="dataset",
    )
