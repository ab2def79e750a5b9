"""A server on a real port that answers as a test tells it to, cuts included."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What a request was."""

    path: str
    headers: dict[str, str]
    body: bytes


class Request(BaseHTTPRequestHandler):
    """One request to the scripted server, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: the second one would wait 40 ms for the receipt of the first.
    disable_nagle_algorithm = True

    def answer(self, body: Any = None, *, status: int = 200, **headers: str) -> None:
        """Answer with JSON."""
        self.send(json.dumps(body).encode(), status=status, **headers)

    def send(self, content: bytes, *, status: int = 200, announced: int | None = None, **headers: str) -> None:
        """Answer with bytes; where more are announced than sent, the connection is cut."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if announced is None else announced))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = announced is not None

    def stream(self, text: str) -> None:
        """Answer with server-sent events, and close."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = True

    def hang_up(self) -> None:
        """Close without an answer."""
        self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.script.requests.append(Asked(self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        self.server.script.answers.pop(0)(self)  # type: ignore[attr-defined]

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Script:
    """What the server is to answer, one request after the other, and what it was asked."""

    url: str
    answers: list[Callable[[Request], None]] = field(default_factory=list)
    requests: list[Asked] = field(default_factory=list)

    def expect(self, *answers: Callable[[Request], None]) -> None:
        """Answer the next requests so."""
        self.answers.extend(answers)


@contextmanager
def scripted_server() -> Iterator[Script]:
    """Run the server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        script = server.script = Script(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


def job_json(**changes: Any) -> dict[str, Any]:
    """A job as the service shows it."""
    job = {
        "id": "job_1",
        "object": "job",
        "name": "",
        "kind": "finetune",
        "status": "queued",
        "phase": None,
        "is_terminal": False,
        "allowed_actions": ["cancel"],
        "created_at": "2026-11-23T00:00:00Z",
        "updated_at": "2026-11-23T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "spec": {},
        "warnings": [],
        "metadata": {},
        "attempt": 0,
        "crashes": 0,
        "stopped_early": False,
        "progress": None,
        "failure": None,
        "results": None,
        "checkpoint": None,
        "links": dict.fromkeys(("self", "events", "metrics", "checkpoints", "report"), ""),
    }
    return job | changes
