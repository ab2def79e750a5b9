"""Receivers of webhooks: real servers on this machine that keep what they get and answer as they are told."""

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """Answers with `statuses`, the last of them for ever; with `hold` set it does not answer at all."""

    port: int
    statuses: Sequence[int]
    got: list[Received] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    free: threading.Event = field(default_factory=threading.Event)

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/hook?a=1"

    def wait_for(self, count: int, *, seconds: float = 60) -> list[Received]:
        deadline = time.monotonic() + seconds
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count} messages came"
            time.sleep(0.01)
        return self.got


@contextlib.contextmanager
def receiver(*statuses: int, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a free port; by default it says 204."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            place = len(made.got)
            made.got.append(Received({name.lower(): value for name, value in self.headers.items()}, body))
            if made.hold.is_set():
                made.free.wait(60)
            with contextlib.suppress(OSError):
                self.send_response(made.statuses[min(place, len(made.statuses) - 1)])
                self.send_header("Location", "/elsewhere")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Who hangs up is no error here."""

    server = Server(("127.0.0.1", 0), Handler)
    made = Receiver(server.server_address[1], statuses or (204,))
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.free.set()
        server.shutdown()
        thread.join()
        server.server_close()
