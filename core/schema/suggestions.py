"""Suggestions for a misspelt name: the closest known one, or all of them."""

import difflib
from collections.abc import Iterable

from pydantic_core import PydanticCustomError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the known name closest to `name`, or list all of them where none is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def check_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known. Raises PydanticCustomError with a suggestion.

    what: the kind of thing that it names, for the message.
    """
    names = list(known)
    if name not in names:
        raise PydanticCustomError(
            "unknown_name",
            "there is no {what} '{name}'; {remedy}",
            {"what": what, "name": name, "remedy": did_you_mean(name, names), "allowed": names},
        )
    return name
