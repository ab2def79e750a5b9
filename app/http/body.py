"""The base of the bodies that routes take."""

from core.schema.record import Record


# FastAPI needs the validator of a body when it builds the route.
class Body(Record, validate_default=False, defer_build=False):
    """The body of a request: closed to unknown fields. A default need not be valid where it stands for "not given"."""
