"""Strict JSON: refuse what Python's parser accepts and the standard does not, or what would lose a value."""

import json
from typing import Any

_MAX_DIGITS = 1000
"""Longest integer that is read. Python refuses to read much longer ones, with an error that names no field."""


class BadJson(ValueError):
    """A value in a JSON text is ambiguous or not standard.

    code: stable, for programs. message: what is wrong and what to do. path: keys and indices that lead to the value.
    """

    def __init__(self, code: str, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{'.'.join(map(str, path))}: {message}" if path else message)
        self.code = code
        self.message = message
        self.path = path


def read_json(text: str | bytes) -> Any:
    """Read a JSON text, without NaN and Infinity, and with each key at most once in an object.

    Raises BadJson, or another ValueError where the text is not JSON at all.
    """
    try:
        return _check(json.loads(text, object_pairs_hook=_Pairs, parse_constant=_constant, parse_int=_integer), ())
    except RecursionError:
        raise BadJson("too_deep", "it is nested too deeply") from None


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object in the order of the text, with repeated keys."""


# The parser knows no paths, so both return the error, which `_check` raises with the path at which it stands.
def _constant(word: str) -> BadJson:
    return BadJson("no_number", f"{word} is not a JSON value; give a finite number")


def _integer(digits: str) -> int | BadJson:
    if len(digits) > _MAX_DIGITS:
        return BadJson("too_long", f"a number of {len(digits)} digits is too long; give at most {_MAX_DIGITS} digits")
    return int(digits)


def _check(value: Any, path: tuple[str | int, ...]) -> Any:
    match value:
        case _Pairs():
            read: dict[str, Any] = {}
            for key, inner in value:
                if key in read:
                    raise BadJson("repeated", "give it once", (*path, key))
                read[key] = _check(inner, (*path, key))
            return read
        case list():
            return [_check(inner, (*path, index)) for index, inner in enumerate(value)]
        case BadJson():
            raise BadJson(value.code, value.message, path)
    return value
