"""HTTP connection to the service: authentication, errors as exceptions, retries while the service restarts."""

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any

import httpx2

from client.credentials import DEFAULT_URL, Credentials
from client.errors import BadAddress, Refused, ServiceFailed, Unreachable, Unreadable
from client.reading import read
from client.retries import Deadline, Retries

if TYPE_CHECKING:
    from app.schemas.problems import Problem

RESTART = 60.0
"""Seconds within which a service that restarts is usually available again."""
SHORTEST_TIMEOUT = 0.5
OUTAGE = 900.0
"""Seconds for which a command that follows a job waits for a service that has answered before. An upgrade takes ten
minutes."""


class Connection:
    """A connection to a service.

    timeout: seconds to wait for one answer. patience: seconds to go on retrying while the service is unavailable. tell:
    called with a line when an outage lasts, and when it is over.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        timeout: float,
        patience: float = 3.0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = credentials.url.rstrip("/")
        self.timeout = timeout
        self.patience = patience
        self._tell = tell
        self._has_answered = False
        self._elsewhere: httpx2.Client | None = None
        self._lock = Lock()
        try:
            self._http = httpx2.Client(
                base_url=self.url,
                verify=_verification(self.url),
                headers={"Authorization": f"Bearer {credentials.api_key}"},
                timeout=timeout,
                follow_redirects=True,
            )
        except httpx2.InvalidURL as error:
            raise BadAddress(
                f"{self.url} is not a valid URL ({error}): set TEMPER_URL, for example {DEFAULT_URL}"
            ) from error

    @property
    def long_patience(self) -> float:
        """Seconds to go on retrying what takes long: long enough for a restart of the service."""
        return max(self.patience, RESTART)

    @property
    def patience_of_follower(self) -> float:
        """Seconds to wait for the service while a job is followed: a long time, once the service has answered."""
        return max(self.patience, OUTAGE if self._has_answered else RESTART)

    def retries(self, patience: float, *, deadline: Deadline | None = None) -> Retries:
        """Begin to count retries of a request."""
        return Retries(patience, deadline=deadline, tell=self._tell)

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()
        if self._elsewhere:
            self._elsewhere.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        patience: float | None = None,
        deadline: Deadline | None = None,
        **arguments: Any,
    ) -> httpx2.Response:
        """Send a request, again while the service is unavailable, and return the answer.

        patience: seconds to go on retrying, by default those of the connection; 0 for a request that must not be
        repeated. deadline: when to stop retrying all the same. Raises Unreachable, Refused, ServiceFailed,
        StillRunning.
        """
        retries = self.retries(self.patience if patience is None else patience, deadline=deadline)
        while True:
            with retries.pause_on_failure(), self.errors():
                response = self._http.request(method, path, **arguments)
                self._has_answered = True
                if response.is_error:
                    raise _answered(response)
                return response

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the transport into Unreachable."""
        try:
            yield
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], deadline: Deadline | None = None, **arguments: Any
    ) -> Iterator[httpx2.Response]:
        """Open an answer to be read in pieces, which breaks off at the deadline. Raises Refused, ServiceFailed,
        httpx2.TransportError."""
        with self._http.stream("GET", path, headers=headers, **arguments) as response:
            _check_stream(response)
            self._has_answered = True
            with _cut_at(deadline, response):
                yield response

    @contextmanager
    def download(self, path: str, *, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Open a file to be read in pieces, from the object store if the service redirects there. The store never gets
        the API key. Raises Refused, ServiceFailed, httpx2.TransportError."""
        with self.stream(path, headers=headers, follow_redirects=False) as response:
            elsewhere = response.headers.get("Location") if response.has_redirect_location else None
            if elsewhere is None:
                yield response
                return
        if (
            "X-Checksum-Sha256" not in response.headers
        ):  # a proxy in front of the service redirects to another address of it
            with self.stream(path, headers=headers) as response:
                yield response
            return
        # The ETag is that of the service; the store has another for the same content.
        plain = {name: value for name, value in headers.items() if name not in ("If-Range", "If-None-Match")}
        with self._without_key().stream("GET", response.url.join(elsewhere), headers=plain) as response:
            _check_stream(response)
            yield response

    def put(self, url: str, *, content: Iterable[bytes], headers: Mapping[str, str]) -> None:
        """Send a part of a file without retries: to the service if the address begins with a slash, else to an object
        store, which never gets the API key. Raises Unreachable, Refused, ServiceFailed."""
        client = self._http if url.startswith("/") else self._without_key()
        with self.errors():
            response = client.put(url, content=content, headers=headers)
        # A store accepts an object once. The object there is this part, because only this part was signed.
        if response.is_error and response.status_code != httpx2.codes.PRECONDITION_FAILED:
            raise _answered(response)

    @contextmanager
    def listen(
        self, path: str, *, last_event_id: int, silence: float, deadline: Deadline
    ) -> Iterator[httpx2.EventSource]:
        """Open an event stream after an event, which breaks off at the deadline. silence: seconds without a byte after
        which it counts as broken. Raises Refused, ServiceFailed, httpx2.TransportError."""
        timeout = self.timeouts(deadline, silence)
        with self._http.sse(path, headers={"Last-Event-ID": str(last_event_id)}, timeout=timeout) as source:
            _check_stream(source.response)
            self._has_answered = True
            with _cut_at(deadline, source.response):
                yield source

    def timeouts(self, deadline: Deadline, silence: float) -> httpx2.Timeout:
        """Limit the seconds to connect, and those without a byte, by what is left until the deadline."""
        # A timeout of zero would mean that nothing is tried at all.
        left = max(deadline.left, SHORTEST_TIMEOUT)
        return httpx2.Timeout(min(self.timeout, left), read=min(silence, left))

    def _unreachable(self, error: httpx2.TransportError) -> Unreachable:
        asked = error.request.url
        if asked.copy_with(raw_path=b"/") != httpx2.URL(self.url).copy_with(raw_path=b"/"):
            return Unreachable(
                f"no answer from the object store at {asked.scheme}://{asked.netloc.decode()} ({_reason(error)}): the "
                "service redirects downloads there; make it reachable from this machine, or have the service set "
                "TEMPER_STORAGE_PROXY"
            )
        return Unreachable(
            f"no answer from {self.url} ({_reason(error)}): start the service with `temper serve`, or set TEMPER_URL "
            "to where it runs"
        )

    def _without_key(self) -> httpx2.Client:
        """Return the client for servers other than the service."""
        with self._lock:
            if self._elsewhere is None:
                self._elsewhere = httpx2.Client(timeout=self.timeout, verify=_LateVerification(ssl.PROTOCOL_TLS_CLIENT))
            return self._elsewhere


class _LateVerification(ssl.SSLContext):
    """Verifies certificates as httpx2 does by default, but reads the authorities only when a TLS connection is opened.

    Reading them takes 0.07 s, which a command for a service on plain HTTP would spend for nothing. A redirect to HTTPS
    opens such a connection.
    """

    _context: ssl.SSLContext | None = None

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        self._context = self._context or httpx2.create_ssl_context()
        return self._context.wrap_socket(*arguments, **options)


@contextmanager
def _cut_at(deadline: Deadline | None, response: httpx2.Response) -> Iterator[None]:
    """Break an answer off at the deadline, even while it is read and nothing comes."""
    if deadline is None or deadline.left == inf:
        yield
        return
    timer = Timer(deadline.left, _shut_down, [response])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(response: httpx2.Response) -> None:
    # To close it would not wake the thread that reads from it.
    with suppress(OSError):
        response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _verification(url: str) -> ssl.SSLContext | bool:
    return True if url.startswith("https:") else _LateVerification(ssl.PROTOCOL_TLS_CLIENT)


def _check_stream(response: httpx2.Response) -> None:
    if response.is_error:
        response.read()
        raise _answered(response)


def _answered(response: httpx2.Response) -> Refused | ServiceFailed:
    kind = Refused if response.is_client_error else ServiceFailed
    return kind(_problem(response), retry_after=_retry_after(response))


def _problem(response: httpx2.Response) -> "Problem":
    from app.schemas.problems import Problem

    # The query is left out of addresses because it may contain a signature.
    where = response.url.copy_with(query=None)
    try:
        return read(Problem, response.content)
    except Unreadable:  # the answer of a proxy, or of another service
        return Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=f"{where} answered {response.status_code} {response.reason_phrase}",
            instance=response.url.path,
            code="unknown",
            request_id="",
            errors=[],
        )


def _retry_after(response: httpx2.Response) -> float:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else 0.0


def _reason(error: httpx2.TransportError) -> str:
    return str(error) or type(error).__name__
