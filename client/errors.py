"""Exceptions of the client, with texts that say what to do.

TemperError
├── NoKey            no API key is configured
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

if TYPE_CHECKING:
    from app.schemas.problems import Problem


class TemperError(Exception):
    """Base of all errors of the client. `exit_code` is the exit status of the command line."""

    exit_code = 1


class NoKey(TemperError):
    """No API key is configured."""


class Unreachable(TemperError):
    """The service does not answer."""


class Unreadable(TemperError):
    """The answer is not one of a Temper service, or of one that this client does not understand."""


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
    """The service refused the request (4xx)."""

    def __init__(self, problem: "Problem", *, retry_after: float = 0.0) -> None:
        super().__init__(problem, retry_after=retry_after)
        if problem.status in (400, 413, 415, 422):
            self.exit_code = 2  # as for a wrong command line: the request has to change


class ServiceFailed(Answered):
    """The service failed (5xx). `str()` includes the request id, which finds the cause in the service's log."""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} (request id {self.problem.request_id})" if self.problem.request_id else text


class StillRunning(TemperError):
    """A job did not end within the timeout. It continues."""


class NoCheckpoint(TemperError):
    """A job has no checkpoint to download."""


class BadDownload(TemperError):
    """A downloaded file does not have the announced hash."""


class CannotWrite(TemperError):
    """A download cannot be written to disk."""


class CannotRead(TemperError):
    """A file to be uploaded cannot be read, or changed during the upload."""

    exit_code = 2


class NotUploaded(TemperError):
    """The service, or another user of the project, aborted an upload."""


class CannotServe(TemperError):
    """A process of the service cannot start."""


def _dotted(pointer: str) -> str:
    """Write a JSON pointer as a dotted field name: /eps/linf becomes eps.linf."""
    return pointer.lstrip("/").replace("/", ".").replace("~1", "/").replace("~0", "~") or "body"
