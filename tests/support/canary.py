"""A class that tells when any code of it runs, for pickles that try to run it."""

SUNG: list[str] = []
"""What ran, in order."""


def sing(*given: object) -> "Canary":
    """Tell that this function ran."""
    SUNG.append(f"sing{given}")
    return Canary()


sing_again = sing


class Canary:
    """Tells when it is made, filled or given a state."""

    def __new__(cls, *given: object, **named: object) -> "Canary":
        SUNG.append("__new__")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        SUNG.append("__setstate__")

    def __setitem__(self, key: object, value: object) -> None:
        SUNG.append("__setitem__")

    def append(self, item: object) -> None:
        SUNG.append("append")

    def extend(self, items: object) -> None:
        SUNG.append("extend")

    def add(self, item: object) -> None:
        SUNG.append("add")
