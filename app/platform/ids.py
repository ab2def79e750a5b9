"""Ids of rows: a prefix that says what they name, and a ULID that sorts by time."""

import re

from ulid import ULID


def new_id(prefix: str) -> str:
    """Make an id that says what it names and sorts by time."""
    return f"{prefix}_{ULID()}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `new_id` can have made it."""
    return re.fullmatch(f"{prefix}_[0-7][0-9A-HJKMNP-TV-Z]{{25}}", text) is not None
