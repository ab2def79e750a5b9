"""The API: `python -m app.main` serves it; `create_app` puts it together."""

import asyncio
import gc
import re
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter, run_sync
from fastapi import APIRouter, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.assets.registry import Registry
from app.http import authentication, error_handler
from app.http.dependencies import Service
from app.http.openapi import Api
from app.http.rate_limits import Failures, Requests, TellStanding
from app.jobs.watch import Watch
from app.operations.maintenance import PERIODIC_TASKS, Maintenance, MaintenanceContext, PeriodicTask
from app.operations.metrics import CountRequests, Metrics
from app.platform import logs
from app.platform.database import THREADS, Database, open_database
from app.platform.ids import is_id, new_id
from app.platform.queue import open_doorbell
from app.platform.settings import Settings
from app.routes import (
    actions,
    attempts,
    catalogue,
    checkpoints,
    datasets,
    events,
    health,
    jobs,
    keys,
    models,
    projects,
    uploads,
    usage,
    webhooks,
)
from app.storage import open_store

MAX_BODY_BYTES = 1024**2
"""Largest body of a request that is no part of an upload."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JOB = re.compile(r"(?:/v1)?/jobs/([^/]+)")


def create_app(
    settings: Settings, database: Database, *, periodic_tasks: Sequence[PeriodicTask] = PERIODIC_TASKS
) -> FastAPI:
    """Put the API together. Where the database has not this version's schema, it is not ready."""
    app = Api(
        title="Temper",
        summary="Make an l_p-robust image classifier robust to l_inf, l_2 and l_1 together, and prove it.",
        description="Every route is also there under /v1.",
        docs_url=None,
        redoc_url=None,
        # It would send callers to whatever host their request names.
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.periodic_tasks = periodic_tasks
    app.state.service = Service(
        settings,
        database,
        open_store(settings),
        Registry(settings.models_dir, settings.datasets_dir),
        Watch(database),
        open_doorbell(settings),
        Requests(settings.broker_url, limit=settings.rate_limit),
        Failures(),
    )
    router = APIRouter()
    for part in (
        jobs,
        actions,
        attempts,
        events,
        checkpoints,
        models,
        datasets,
        catalogue,
        webhooks,
        uploads,
        keys,
        projects,
        usage,
        health,
    ):
        router.include_router(part.router)
    app.include_router(router)
    app.include_router(router, prefix="/v1", include_in_schema=False)
    # The files of the page at /docs.
    app.mount("/swagger", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(TellStanding)
    app.add_middleware(RequestId)
    app.state.metrics = Metrics(database, app.state.service.watch, app.state.service.doorbell)
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    error_handler.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    current_default_thread_limiter().total_tokens = THREADS
    polling = asyncio.create_task(service.watch.run())
    service.doorbell.start()
    context = MaintenanceContext(service.settings, service.database, service.store, service.doorbell)
    maintenance = Maintenance(context, app.state.periodic_tasks)
    maintenance.start()
    _stop_on_signals(service.watch)
    metrics: Metrics = app.state.metrics
    with metrics.serving(service.settings.metrics_host, service.settings.metrics_port):
        if threading.current_thread() is threading.main_thread():
            _build_routes(app)
            _spare_what_stays()
        yield
    service.watch.stop()
    await run_sync(maintenance.stop)
    await run_sync(service.doorbell.stop)
    polling.cancel()
    with suppress(asyncio.CancelledError):
        await polling
    service.store.close()
    service.database.close()


def _build_routes(app: FastAPI) -> None:
    """Have FastAPI put its routes together, which it would else do while the first requests wait."""
    nowhere = {"type": "http", "method": "GET", "path": "/nowhere", "headers": []}
    for route in app.routes:
        route.matches(nowhere)


def _spare_what_stays() -> None:
    """Keep the garbage collector off all that is here before the first request: on its way through it, which is a third
    of a second, every request would wait."""
    gc.collect()
    gc.freeze()


def _stop_on_signals(watch: Watch) -> None:
    """End the open streams when the server is told to stop: uvicorn would wait for them for ever."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def stop(received: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(watch.stop)
            before(received, frame)

        signal.signal(number, stop)


class BodyLimit:
    """Refuse a body as soon as more of it has come than the limit allows, declared or not."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and uploads.counts_its_body(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        received = 0

        async def receive_up_to_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # FastAPI lets only its own exceptions out of the reading of a body.
                detail = f"the body is over the limit of {self.max_bytes} bytes; a job spec is much smaller"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self.app(scope, receive_up_to_limit, send)


class RequestId:
    """Give each request an id, or keep the one it came with, send it back, and log with it all that is done for it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
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


def app_from_environment() -> FastAPI:
    """Put the API together as the environment says, for one of several processes."""
    settings = Settings.from_environment()
    logs.set_up(settings)
    return create_app(settings, Database(settings.database_url))


def main() -> None:
    """Serve the API until a signal says stop."""
    settings = Settings.from_environment()
    logs.set_up(settings)
    database = Database(settings.database_url)
    if settings.migrate_at_start:
        database = open_database(settings.database_url)
        authentication.tell_first_key(database, settings)
    several = settings.api_workers > 1
    if several:
        database.close()
    uvicorn.run(
        "app.main:app_from_environment" if several else create_app(settings, database),
        factory=several,
        workers=settings.api_workers,
        host=settings.host,
        port=settings.port,
        # httptools, which uvicorn would take where it is installed, takes in headers without end.
        http="h11",
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=20,
        # On a busy machine a process may take some seconds to start; uvicorn would kill it and start another, for ever.
        timeout_worker_healthcheck=60,
    )


if __name__ == "__main__":
    main()
