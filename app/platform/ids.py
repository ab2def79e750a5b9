"""Ids of rows: a prefix that says what they name, and a ULID that sorts by time."""

import re

from ulid import ULID


def new_id(prefix: str) -> str:
    """Make an id that says what it names and sorts by time."""
    return f"{prefix}_{ULID()}"


def later_id(prefix: str, than: str) -> str:
    """Make an id whose number sorts after `than`, the number of another id or empty, even where the clock went back."""
    number = str(ULID())
    if number <= than:
        number = str(ULID.from_int(int(ULID.from_str(than)) + 1))
    return f"{prefix}_{number}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `new_id` can have made it."""
    return re.fullmatch(f"{prefix}_[0-7][0-9A-HJKMNP-TV-Z]{{25}}", text) is not None
