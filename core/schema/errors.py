"""The errors of a run that a user or operator can act on, with what is wrong and what to do.

The service stores `code`, `message`, `hint` and `retryable` as a job's `failure`; the command line prints them and ends
with `exit_status`.
"""

from core.schema.exit_status import ExitStatus


class UserError(Exception):
    """The run cannot continue, and the user or the operator can change that.

    message: what is wrong, naming the thing. hint: what to do. field: the spec field or input it is about.
    """

    code = "user_error"
    retryable = False
    exit_status = ExitStatus.BAD_REQUEST

    def __init__(self, message: str, *, hint: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field


class BadInput(UserError):
    """An argument of a run is invalid, or contradicts another."""

    code = "bad_input"


class BadDataset(UserError):
    """Images or labels cannot be read."""

    code = "bad_dataset"


class BadWeights(UserError):
    """A weights file cannot be read."""

    code = "bad_weights"


class DoesNotFit(UserError):
    """The model does not fit the data set."""

    code = "does_not_fit"


class Diverged(UserError):
    """The loss or the weights became NaN or infinite."""

    code = "diverged"
    exit_status = ExitStatus.FAILED


class OutOfMemory(UserError):
    """The batch does not fit into the memory of the device."""

    code = "out_of_memory"
    exit_status = ExitStatus.FAILED


class OverLimit(UserError):
    """A file needs more time, memory or disk space than the limits allow."""

    code = "over_limit"
    exit_status = ExitStatus.FAILED


class DiskFull(UserError):
    """A file could not be written because the disk is full."""

    code = "disk_full"
    retryable = True
    exit_status = ExitStatus.FAILED


def shorten(text: str, limit: int = 64) -> str:
    """Cut text that an error message quotes to at most `limit` characters and an ellipsis."""
    return text if len(text) <= limit else f"{text[:limit]}..."
