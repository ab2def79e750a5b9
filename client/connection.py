"""HTTP to the service: the key in each request, errors as exceptions, and patience with a service that restarts."""

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import httpx2
from pydantic import ValidationError

from client.credentials import DEFAULT_URL, Credentials
from client.errors import Problem, Refused, ServiceFailed, Unreachable

# Answers of a service, or of a proxy before it, that is busy or not there for a moment.
PASSING = frozenset({429, 502, 503, 504})
# Seconds before a stream that has closed is taken up again.
RECONNECT = 0.5


class Connection:
    """A service's address and a key to it."""

    def __init__(self, credentials: Credentials, *, timeout: float) -> None:
        self.url = credentials.url.rstrip("/")
        self._timeout = timeout
        self._elsewhere: httpx2.Client | None = None
        self._lock = Lock()
        try:
            self._http = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {credentials.api_key}"},
                timeout=timeout,
                follow_redirects=True,
            )
        except httpx2.InvalidURL as error:
            raise Unreachable(
                f"{self.url} is no address ({error}): set TEMPER_URL, for example {DEFAULT_URL}"
            ) from error

    def close(self) -> None:
        """Let go of the sockets."""
        self._http.close()
        if self._elsewhere:
            self._elsewhere.close()

    def request(self, method: str, path: str, *, patience: float, **arguments: Any) -> httpx2.Response:
        """Send a request, again while the service is away, and return its answer.

        Only for requests that do no harm twice. `patience` is how many seconds to go on trying. Raises Unreachable,
        Refused, ServiceFailed.
        """
        pauses = Pauses(patience)
        while True:
            try:
                response = self._http.request(method, path, **arguments)
            except httpx2.TransportError as error:
                pauses.sleep_or_raise(self.unreachable(error))
                continue
            if not response.is_error:
                return response
            if response.status_code not in PASSING:
                raise _answered(response)
            pauses.sleep_or_raise(_answered(response), at_least=_retry_after(response))

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str], **arguments: Any) -> Iterator[httpx2.Response]:
        """Open an answer that is read piece by piece. Raises Refused, ServiceFailed, httpx2.TransportError."""
        with self._http.stream("GET", path, headers=headers, **arguments) as response:
            _check_stream(response)
            yield response

    @contextmanager
    def download(self, path: str, *, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Open a file that is read piece by piece, in the object store where the service sends us there, which never
        sees the key. Raises Refused, ServiceFailed, httpx2.TransportError."""
        with self.stream(path, headers=headers, follow_redirects=False) as response:
            elsewhere = response.headers.get("Location") if response.has_redirect_location else None
            if elsewhere is None:
                yield response
                return
        if "X-Checksum-Sha256" not in response.headers:  # a proxy before the service wants another address of it
            with self.stream(path, headers=headers) as response:
                yield response
            return
        # The ETag is the service's; the store has another for the same content.
        plain = {name: value for name, value in headers.items() if name != "If-Range"}
        with self._without_key().stream("GET", response.url.join(elsewhere), headers=plain) as response:
            _check_stream(response)
            yield response

    def put(self, url: str, *, content: Iterable[bytes], headers: Mapping[str, str]) -> None:
        """Send a part of a file, once: to the service where the address begins with a slash, else to an object store,
        which never sees the key. Raises Unreachable, Refused, ServiceFailed."""
        client = self._http if url.startswith("/") else self._without_key()
        try:
            response = client.put(url, content=content, headers=headers)
        except httpx2.TransportError as error:
            raise self.unreachable(error) from error
        # A store takes an object once. What is there is this part: nothing else was signed.
        if response.is_error and response.status_code != httpx2.codes.PRECONDITION_FAILED:
            raise _answered(response)

    @contextmanager
    def listen(self, path: str, *, last_event_id: int, silence: float) -> Iterator[httpx2.EventSource]:
        """Open an event stream past an event; `silence` is how many seconds without a byte mean that it is broken.

        Raises Refused, ServiceFailed, httpx2.TransportError.
        """
        timeout = httpx2.Timeout(self._timeout, read=silence)
        with self._http.sse(path, headers={"Last-Event-ID": str(last_event_id)}, timeout=timeout) as source:
            _check_stream(source.response)
            yield source

    def unreachable(self, error: httpx2.TransportError) -> Unreachable:
        """Say in words that nobody answers."""
        asked = error.request.url
        if asked.copy_with(raw_path=b"/") != httpx2.URL(self.url).copy_with(raw_path=b"/"):
            return Unreachable(
                f"no answer from the object store at {asked.scheme}://{asked.netloc.decode()} ({_reason(error)}): the "
                "service sends files there, so this machine has to reach it, or the service to set TEMPER_STORAGE_PROXY"
            )
        return Unreachable(
            f"no answer from {self.url} ({_reason(error)}): start the service with `temper serve`, or set TEMPER_URL "
            "to where it runs"
        )

    def _without_key(self) -> httpx2.Client:
        """Speak with a server that is not the service."""
        with self._lock:
            if self._elsewhere is None:
                self._elsewhere = httpx2.Client(timeout=self._timeout)
            return self._elsewhere


class Pauses:
    """Growing pauses between tries, until patience is at an end."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.restart()

    def restart(self) -> None:
        """Be patient anew, because something came through."""
        self._deadline = time.monotonic() + self._patience
        self._next = 0.1

    def sleep_or_raise(self, error: Exception, *, at_least: float = 0.0) -> None:
        """Sleep before the next try; raise `error` where that would be past all patience."""
        pause = max(at_least, self._next * random.uniform(0.75, 1.25))
        if time.monotonic() + pause > self._deadline:
            raise error
        time.sleep(pause)
        self._next = min(2 * self._next, 10.0)


def _check_stream(response: httpx2.Response) -> None:
    if response.is_error:
        response.read()
        raise _answered(response)


def _answered(response: httpx2.Response) -> Refused | ServiceFailed:
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # not our service, or not the service itself: a proxy
        # Without the query, which may carry a signature.
        where = response.url.copy_with(query=None)
        detail = f"{where} answered {response.status_code} {response.reason_phrase}"
        problem = Problem(status=response.status_code, code="unknown", detail=detail)
    return Refused(problem) if response.is_client_error else ServiceFailed(problem)


def _retry_after(response: httpx2.Response) -> float:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else 0.0


def _reason(error: httpx2.TransportError) -> str:
    return str(error) or type(error).__name__
