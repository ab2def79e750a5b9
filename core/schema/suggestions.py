"""Suggestions for a misspelt name: the closest known one, or a list of them."""

import difflib
from collections.abc import Iterable, Mapping

from pydantic_core import PydanticCustomError

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "adversarialtraining": ("sat",),
    "arch": ("architecture",),
    "autoattack": ("standard",),
    "bs": ("batch_size",),
    "ce": ("cross-entropy",),
    "checkpoint": ("base_model",),
    "data": ("dataset",),
    "epsilon": ("eps",),
    "finetuning": ("finetune",),
    "inf": ("linf",),
    "infinity": ("linf",),
    "iterations": ("steps", "epochs"),
    "iters": ("steps", "epochs"),
    "linfinity": ("linf",),
    "lr": ("learning_rate",),
    "model": ("base_model", "architecture"),
    "natural": ("nat",),
    "network": ("architecture", "base_model"),
    "niter": ("steps", "epochs"),
    "nexamples": ("examples", "train_examples"),
    "radius": ("eps", "bound"),
    "radii": ("eps",),
    "training": ("train",),
    "valid": ("held_out",),
    "wd": ("weight_decay",),
    "weights": ("base_model",),
}
"""What the field's words in other projects are called here, the closest first. Written as `_plain` writes them."""


_MOST_NAMED = 30
"""Names that an error lists at most."""


def find_close(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that is meant by `name`: the same but for case, hyphens and underscores, another word for it,
    or one with few other letters."""
    plain = {_plain(each): each for each in reversed(list(known))}
    wanted = _plain(name)
    if wanted in plain:
        return plain[wanted]
    for synonym in _SYNONYMS.get(wanted, ()):
        if _plain(synonym) in plain:
            return plain[_plain(synonym)]
    close = difflib.get_close_matches(wanted, plain, n=1)
    return plain[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the known name closest to `name`, or list them, up to _MOST_NAMED, where none is close."""
    names = list(known)
    if close := find_close(name, names):
        return f"did you mean {close!r}?"
    more = len(names) - _MOST_NAMED
    return f"known: {', '.join(names[:_MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"


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


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())
