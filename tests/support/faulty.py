"""A bad way to an HTTP server: some requests are answered by a 500, before or after they have been done, some are cut
off, some get no answer at all."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        faulty: Faulty = self.server.faulty  # type: ignore[attr-defined]
        fault = faulty.next_fault(self.command + self.path.partition("?")[0])
        if fault == "silence":
            time.sleep(faulty.silence)
        if fault in ("silence", "cut"):
            self.close_connection = True
            return
        if fault == "500 before":
            self._answer(500, {}, b"")
            return
        status, headers, content = faulty.ask(self.command, self.path, body, dict(self.headers))
        if fault == "500 after":
            status, headers, content = 500, {}, b""
        self._answer(status, headers, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        for name, value in headers.items():
            if name not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that is killed breaks off in the middle."""


class Faulty:
    """The way to a server. A share of the requests fails, but none of them more than three times in a row."""

    def __init__(self, target: str, share: float, silence: float) -> None:
        self.share = share
        self.silence = silence
        """Seconds that a request without an answer lasts."""
        self.is_away = False
        """Whether all requests are cut off."""
        self.faults: Counter[str] = Counter()
        self._target = urlsplit(target)
        self._random = random.Random(7)
        self._in_a_row: Counter[str] = Counter()
        self._lock = threading.Lock()

    def next_fault(self, what: str) -> str | None:
        with self._lock:
            if self.is_away:
                return "cut"
            if self._random.random() > self.share or self._in_a_row[what] == 3:
                self._in_a_row[what] = 0
                return None
            self._in_a_row[what] += 1
            (fault,) = self._random.choices(["500 before", "500 after", "cut", "silence"], [4, 4, 4, 1])
            self.faults[fault] += 1
            return fault

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        assert self._target.hostname
        connection = http.client.HTTPConnection(self._target.hostname, self._target.port, timeout=30)
        try:
            # The host stays the one that was asked: it is part of what is signed.
            kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(method, path, body, kept)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@contextmanager
def faulty(target: str, *, share: float = 0.3, silence: float = 1.2) -> Iterator[tuple[str, Faulty]]:
    """Put a bad way before a server, and give its address."""
    with _Server(("127.0.0.1", 0), _Request) as server:
        way = server.faulty = Faulty(target, share, silence)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", way
        finally:
            server.shutdown()
            thread.join()
