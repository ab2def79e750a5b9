"""What can go wrong between a client and the service, worded for the person who can act.

TemperError
├── NoKey            no API key is known
├── Unreachable      nobody answers at the service's address
├── Unreadable       what answers there is not a Temper service
├── Answered         the service said no
│   ├── Refused        because of the request (4xx)
│   └── ServiceFailed  because of itself (5xx)
├── StillRunning     a job did not end in the time given
├── NoCheckpoint     a job has no checkpoint to download
├── BadDownload      a file did not arrive as it was announced
├── CannotWrite      a download has no place on this machine
├── CannotRead       a file that is to be uploaded cannot be read
├── NotUploaded      a file was given up by the service
└── CannotServe      a process of the service cannot start
"""

from pydantic import BaseModel, ConfigDict

from core.schema.validation import FieldError


class Problem(BaseModel):
    """An error answer of the service (RFC 9457): a sentence, a stable `code`, and an entry per field."""

    model_config = ConfigDict(frozen=True)

    status: int
    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    request_id: str | None = None


class TemperError(Exception):
    """Something went wrong that the message explains. `exit_code` is the command line's."""

    exit_code = 1


class NoKey(TemperError):
    """No API key is known."""


class Unreachable(TemperError):
    """Nobody answers at the service's address."""


class Unreadable(TemperError):
    """What answers is not a Temper service, or not one that this client understands."""


class Answered(TemperError):
    """The service said no. `problem` is its answer, `str()` a line per field, or its detail."""

    def __init__(self, problem: Problem) -> None:
        lines = [f"{_dotted(error.pointer)}: {error.detail}" for error in problem.errors]
        super().__init__("\n".join(lines) or problem.detail)
        self.problem = problem


class Refused(Answered):
    """The service refused the request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if problem.status in (400, 413, 415, 422):
            self.exit_code = 2  # what was sent has to change, as with a wrong command line


class ServiceFailed(Answered):
    """The service could not do what it should. Its log knows more about the request id, where `str()` has one."""

    def __str__(self) -> str:
        told = super().__str__()
        return f"{told} (request id {self.problem.request_id})" if self.problem.request_id else told


class StillRunning(TemperError):
    """A job did not end in the time given. It goes on."""


class NoCheckpoint(TemperError):
    """A job has no checkpoint to download."""


class BadDownload(TemperError):
    """A file did not arrive as it was announced."""


class CannotWrite(TemperError):
    """A download has no place on this machine."""


class CannotRead(TemperError):
    """A file that is to be uploaded cannot be read, or changes meanwhile."""

    exit_code = 2


class NotUploaded(TemperError):
    """A file was given up by the service, or by somebody else, while it was sent."""


class CannotServe(TemperError):
    """A process of the service cannot start."""


def _dotted(pointer: str) -> str:
    """Write a JSON pointer as people write a field: /eps/linf as eps.linf."""
    return pointer.lstrip("/").replace("/", ".").replace("~1", "/").replace("~0", "~") or "body"
