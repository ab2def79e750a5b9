"""The exit statuses of `temper` and of `python -m core`: one table for both."""

from collections.abc import Iterator
from enum import IntEnum


class ExitStatus(IntEnum):
    """What a command ended with. `meaning` is for people."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> "ExitStatus":
        """Make a member of a number and its meaning."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.meaning = meaning
        return member

    SUCCEEDED = 0, "what was asked for was done; the job succeeded"
    FAILED = 1, "what was asked for was not done: the job failed or was cancelled, or a check failed"
    BAD_REQUEST = 2, "the request is wrong, and will fail again if repeated: option, spec, input, key, name or path"
    UNREACHED = 3, "the service was not reached or could not answer; the same command may succeed later"
    TIMED_OUT = 4, "the time of --timeout is over; the job goes on"
    NOT_ACCEPTED = 5, "the job succeeded, and its result does not meet what was to be accepted"
    PAUSED = 75, "the run is paused; the same run can be resumed"
    INTERRUPTED = 130, "Ctrl-C ended the command; a job of the service goes on"
    BROKEN_PIPE = 141, "nothing reads the output any more"


def table_lines() -> Iterator[str]:
    """Write the table as lines of text, for the help of a command."""
    for status in ExitStatus:
        yield f"{status:>3}  {status.meaning}"
