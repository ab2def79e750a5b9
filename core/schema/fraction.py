"""Numbers written as fractions, such as the radius "8/255"."""

import re

# Short and without exponents: to compute "1e999999999" exactly would take hours.
_FRACTION = re.compile(r"(-?\d{1,9}(?:\.\d{1,18})?)(?:/(\d{1,9}))?")


def read_fraction(text: str) -> float:
    """Read "0.5" or "8/255" as the nearest float. Raises ValueError for anything else, such as "1/0"."""
    found = _FRACTION.fullmatch(text.replace(" ", ""))
    if found is None or int(found[2] or 1) == 0:
        raise ValueError(f"{text!r} is not a number or fraction")
    return float(found[1]) / float(found[2] or 1)
