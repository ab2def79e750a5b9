"""Exceptions of the client, with texts that say what to do.

TemperError
├── BadAddress       the address of the service is not one
├── NoKey            no API key is configured
├── NoSuchJob        a name is that of no job, or of several
├── Unreachable      the service does not answer
├── Unreadable       the answer is not one of a Temper service
├── Answered         the service answered with an error
│   ├── Refused        because of the request (4xx)
│   └── ServiceFailed  because of a failure of its own (5xx)
├── StillRunning     a job did not end within the timeout
├── NoCheckpoint     a job has no checkpoint to download
├── BadDownload      a downloaded file is damaged
├── CannotWrite      a download cannot be written to disk
├── CannotRead       a file to be uploaded cannot be read
├── NotUploaded      the service aborted an upload
└── CannotServe      a process of the service cannot start
"""

from typing import TYPE_CHECKING

from core.schema.exit_status import ExitStatus

if TYPE_CHECKING:
    from app.schemas.problems import Problem


TOO_MANY = 429
"""The status code of a service that has more requests or streams than it takes at the moment."""


class TemperError(Exception):
    """Base of all errors of the client. `exit_status` is that of the command line."""

    exit_status = ExitStatus.FAILED


class BadAddress(TemperError):
    """The address of the service is not one."""

    exit_status = ExitStatus.BAD_REQUEST


class NoSuchJob(TemperError):
    """A name is that of no job, or of several."""

    exit_status = ExitStatus.BAD_REQUEST


class NoKey(TemperError):
    """No API key is configured."""

    exit_status = ExitStatus.BAD_REQUEST


class Unreachable(TemperError):
    """The service does not answer."""

    exit_status = ExitStatus.UNREACHED


class Unreadable(TemperError):
    """The answer is not one of a Temper service, or of one that this client does not understand."""

    exit_status = ExitStatus.UNREACHED


class Answered(TemperError):
    """The service answered with an error.

    problem: the body of the answer; `str()` is a line per field, or its detail. retry_after: seconds to wait before
    the next attempt, if the service named a time.
    """

    def __init__(self, problem: "Problem", *, retry_after: float = 0.0) -> None:
        lines = [f"{_dotted(error.pointer)}: {error.detail}" for error in problem.errors]
        super().__init__("\n".join(lines) or problem.detail)
        self.problem = problem
        self.retry_after = retry_after


class Refused(Answered):
    """The service refused the request (4xx): it has to change, unless there are too many requests (429)."""

    def __init__(self, problem: "Problem", *, retry_after: float = 0.0) -> None:
        super().__init__(problem, retry_after=retry_after)
        self.exit_status = ExitStatus.UNREACHED if problem.status == TOO_MANY else ExitStatus.BAD_REQUEST


class ServiceFailed(Answered):
    """The service failed (5xx). `str()` includes the request id, which finds the cause in the service's log."""

    exit_status = ExitStatus.UNREACHED

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} (request id {self.problem.request_id})" if self.problem.request_id else text


class StillRunning(TemperError):
    """A job did not end within the timeout. It continues, unless it is paused.

    is_paused: whether the job was paused when it was last seen.
    """

    def __init__(self, message: str, *, is_paused: bool = False) -> None:
        super().__init__(message)
        self.exit_status = ExitStatus.PAUSED if is_paused else ExitStatus.TIMED_OUT


class NoCheckpoint(TemperError):
    """A job has no checkpoint to download."""


class BadDownload(TemperError):
    """A downloaded file does not have the announced hash."""

    exit_status = ExitStatus.UNREACHED


class CannotWrite(TemperError):
    """A download cannot be written to disk."""

    exit_status = ExitStatus.BAD_REQUEST


class CannotRead(TemperError):
    """A file to be uploaded cannot be read, or changed during the upload."""

    exit_status = ExitStatus.BAD_REQUEST


class NotUploaded(TemperError):
    """The service, or another user of the project, aborted an upload."""


class CannotServe(TemperError):
    """A process of the service cannot start."""


def _dotted(pointer: str) -> str:
    """Write a JSON pointer as a dotted field name: /eps/linf becomes eps.linf."""
    return pointer.lstrip("/").replace("/", ".").replace("~1", "/").replace("~0", "~") or "body"
