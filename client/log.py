"""The log of a job that goes on: taken up again where it broke, so that each byte comes once."""

import codecs
from collections.abc import Iterator, Mapping

import httpx2

from client.connection import PASSING, RECONNECT, Connection, Pauses
from client.errors import Answered, TemperError, Unreachable, Unreadable
from client.records import Job, read


def follow_log(
    connection: Connection, job: str, params: Mapping[str, str | int], *, timeout: httpx2.Timeout, patience: float
) -> Iterator[str]:
    """Go through the log of the job at this path, piece by piece, until the job has ended.

    Where nothing is logged, nothing is sent: a connection that is silent for longer than `timeout` has it may be dead,
    so it is made anew. Raises Unreachable, Unreadable, Refused, ServiceFailed.
    """
    pauses = Pauses(patience)
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    has_ended = False
    while True:
        try:
            with connection.stream(f"{job}/logs", headers={}, params=params, timeout=timeout) as response:
                pauses.restart()
                attempt, offset = _place(connection, response)
                for chunk in response.iter_bytes():
                    offset += len(chunk)
                    yield text.decode(chunk)
                    params = _further(params, attempt, offset)
                params = _further(params, attempt, offset)
            if has_ended:
                return
            # What was logged after that stream had closed is still to come.
            has_ended = read(Job, connection.request("GET", job, patience=patience).content).is_terminal
            broken: TemperError = Unreachable(f"{connection.url} closed the log of {job}")
        except httpx2.TransportError as error:
            broken = connection.unreachable(error)
        except Answered as error:
            if error.problem.status not in PASSING:
                raise
            broken = error
        pauses.sleep_or_raise(broken, at_least=RECONNECT)


def _further(params: Mapping[str, str | int], attempt: int, offset: int) -> Mapping[str, str | int]:
    """Ask for what is behind a place."""
    return {name: value for name, value in params.items() if name != "tail"} | {"after": f"{attempt}:{offset}"}


def _place(connection: Connection, response: httpx2.Response) -> tuple[int, int]:
    attempt, _, offset = response.headers.get("X-Log-Place", "").partition(":")
    if not (attempt.isdigit() and offset.isdigit()):
        raise Unreadable(f"{connection.url} does not say where a log begins: it is older than this client")
    return int(attempt), int(offset)
