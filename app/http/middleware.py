"""ASGI middlewares around all routes: request ids, the prefix /v1, the limit of bodies, rate limit headers, metrics."""

import re
from collections.abc import Callable
from http import HTTPMethod, HTTPStatus
from time import monotonic

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.rate_limits import Standing
from app.platform import logs
from app.platform.ids import is_id, new_id

PREFIX = "/v1"
_METHODS = frozenset(HTTPMethod)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JOB = re.compile(r"(?:/v1)?/jobs/([^/]+)")


class VersionPrefix:
    """Serve every route under /v1, too: the prefix is the root path of such a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(f"{PREFIX}/"):
            scope["root_path"] = scope.get("root_path", "") + PREFIX
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuse a body as soon as more of it has come than `max_bytes`, declared or not.

    except_for: says of method and path whether their route limits the body itself.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, except_for: Callable[[str, str], bool]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.except_for = except_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.except_for(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        received = 0

        async def receive_up_to_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # While FastAPI reads a body it passes on only HTTPException.
                detail = f"the body is over the limit of {self.max_bytes} bytes; a job spec is much smaller"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self.app(scope, receive_up_to_limit, send)


class RequestId:
    """Give each request an id, or keep its own; return it in a header and add it to the log lines of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Request-Id", request_id)
            await send(message)

        with logs.about(request_id=request_id, **_job_in(scope["path"])):
            await self.app(scope, receive, send_with_id)


def _job_in(path: str) -> dict[str, str]:
    match = _JOB.match(path)
    return {"job_id": match[1]} if match and is_id("job", match[1]) else {}


class TellStanding:
    """Add the key's rate limit to the headers of every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:

        async def send_with_standing(message: Message) -> None:
            standing: Standing | None = scope.get("state", {}).get("standing")
            if standing and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(standing.headers)
            await send(message)

        await self.app(scope, receive, send_with_standing)


class CountRequests:
    """Count answers by route and status, not by address: callers can invent any number of addresses."""

    def __init__(self, app: ASGIApp, *, requests: Counter, durations: Histogram) -> None:
        self.app = app
        self.requests = requests
        self.durations = durations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = monotonic()

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                known = scope["method"] if scope["method"] in _METHODS else "other"
                method = known if route != "none" else "any"
                self.requests.labels(method, route, str(message["status"])).inc()
                self.durations.labels(route).observe(monotonic() - began)
            await send(message)

        await self.app(scope, receive, count)
