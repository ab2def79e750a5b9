"""What can be the user's fault, or the machine's, in words for the person who can act. No torch.

    UserError
    ├── BadInput       the arguments of a run make no sense together
    ├── BadDataset     images or labels cannot be read
    ├── BadWeights     a weights file cannot be read
    ├── DoesNotFit     a model and a data set that do not belong together
    ├── Diverged       the loss is no longer a number
    ├── OutOfMemory    the batch does not fit the device
    ├── OverLimit      a file takes more time, memory or room than it may
    └── DiskFull       a file could not be written

The service stores `code`, `message`, `hint` and `retryable` as a job's `failure`; the command line prints them.
"""


class UserError(Exception):
    """The run cannot go on, and somebody can do something about it.

    message: what happened, naming the thing. hint: what to do. field: the spec field or the input it is about.
    """

    code = "user_error"
    retryable = False

    def __init__(self, message: str, *, hint: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field


class BadInput(UserError):
    """The arguments of a run make no sense together."""

    code = "bad_input"


class BadDataset(UserError):
    """Images or labels cannot be read."""

    code = "bad_dataset"


class BadWeights(UserError):
    """A weights file cannot be read."""

    code = "bad_weights"


class DoesNotFit(UserError):
    """A model and a data set that do not belong together."""

    code = "does_not_fit"


class Diverged(UserError):
    """The loss is no longer a number."""

    code = "diverged"


class OutOfMemory(UserError):
    """The batch does not fit the device."""

    code = "out_of_memory"


class OverLimit(UserError):
    """A file takes more time, memory or room than it may."""

    code = "over_limit"


class DiskFull(UserError):
    """A file could not be written because there is no room."""

    code = "disk_full"
    retryable = True
