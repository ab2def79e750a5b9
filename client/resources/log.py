"""Log of a job: as stored, or followed while the job runs, with each byte once."""

import codecs
from collections.abc import Iterator, Mapping

import httpx2

from app.schemas.jobs import Job
from client.connection import Connection
from client.errors import Unreachable, Unreadable
from client.reading import read
from client.resources.event_stream import RECONNECT, SILENCE
from client.retries import Deadline

Params = Mapping[str, str | int]


def read_log(connection: Connection, job: str, params: Params) -> Iterator[str]:
    """Iterate over the log of the job at this path as far as it is stored. Raises Unreachable, Refused,
    ServiceFailed."""
    with connection.errors(), connection.stream(f"{job}/logs", headers={}, params=params) as response:
        yield from response.iter_text()


def follow_log(connection: Connection, job: str, params: Params, deadline: Deadline) -> Iterator[str]:
    """Iterate over the log of the job at this path until the job has ended.

    The service sends nothing while nothing is logged, so a connection that is silent for SILENCE seconds is replaced.
    Raises Unreachable, Unreadable, Refused, ServiceFailed, StillRunning.
    """
    retries = connection.retries(connection.patience_of_follower, deadline=deadline)
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    has_ended = False
    while True:
        with retries.pause_on_failure(at_least=RECONNECT), connection.errors():
            timeout = connection.timeouts(deadline, SILENCE)
            with (
                connection.stream(
                    f"{job}/logs", headers={}, deadline=deadline, params=params, timeout=timeout
                ) as response,
                retries.counted_from_the_end(connection.patience_of_follower),
            ):
                attempt, offset = _place(connection, response)
                for chunk in response.iter_bytes():
                    offset += len(chunk)
                    yield text.decode(chunk)
                    params = _after(params, attempt, offset)
                params = _after(params, attempt, offset)
            if has_ended:
                return
            # Lines that were logged after that stream closed are still to come.
            patience = connection.patience_of_follower
            answer = connection.request("GET", job, patience=patience, deadline=deadline)
            has_ended = read(Job, answer.content).is_terminal
            raise Unreachable(f"{connection.url} closed the log of {job}")


def _after(params: Params, attempt: int, offset: int) -> Params:
    """Ask for what follows a place in the log."""
    return {name: value for name, value in params.items() if name != "tail"} | {"after": f"{attempt}:{offset}"}


def _place(connection: Connection, response: httpx2.Response) -> tuple[int, int]:
    attempt, _, offset = response.headers.get("X-Log-Place", "").partition(":")
    if not (attempt.isdigit() and offset.isdigit()):
        raise Unreadable(f"{connection.url} does not say where a log begins: it is older than this client")
    return int(attempt), int(offset)
