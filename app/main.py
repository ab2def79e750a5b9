"""The API: `create_app` puts it together, `serve` serves it."""

import asyncio
import gc
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter, run_sync
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from app.assets.registry import Registry
from app.http import authentication, error_handler
from app.http.connections import MOST_CONNECTIONS, Connection, allow_many_files
from app.http.dependencies import Service
from app.http.middleware import BodyLimit, CountRequests, RequestId, TellStanding, VersionPrefix
from app.http.openapi import Api
from app.http.rate_limits import Failures, Requests
from app.jobs.watch import Watch
from app.operations.maintenance import PERIODIC_TASKS, Maintenance, MaintenanceContext, PeriodicTask
from app.operations.metrics import Metrics
from app.platform import logs
from app.platform.database import THREADS, Database, open_database
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
    workers,
)
from app.storage import open_store

PARTS = (
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
    workers,
    health,
)
"""The modules that have routes, in the order of the OpenAPI document."""
MAX_BODY_BYTES = 64 * 1024
"""Largest body of a request that is no part of an upload."""


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
        # The redirect would use the request's Host header, which a client can forge.
        redirect_slashes=False,
        root_path_in_servers=False,
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
    for part in PARTS:
        # `include_router` would build every route once more, which takes half a second.
        app.router.routes.extend(part.router.routes)
    # The files of the page at /docs.
    app.mount("/swagger", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, except_for=uploads.counts_its_body)
    app.add_middleware(TellStanding)
    app.add_middleware(RequestId)
    app.add_middleware(VersionPrefix)
    app.state.metrics = metrics = Metrics(database, app.state.service.watch, app.state.service.doorbell)
    app.add_middleware(CountRequests, requests=metrics.requests, durations=metrics.durations)
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


def _spare_what_stays() -> None:
    """Exclude start-up objects from garbage collection: a full pass takes a third of a second and blocks requests."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _stop_on_signals(watch: Watch) -> None:
    """End the open streams when the server is told to stop: uvicorn would wait for them without end."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def stop(received: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(watch.stop)
            before(received, frame)

        signal.signal(number, stop)


def app_from_environment() -> FastAPI:
    """Put the API together by the settings of the environment, for one of several processes."""
    settings = Settings.from_environment()
    logs.set_up(settings)
    return create_app(settings, Database(settings.database_url))


def serve() -> None:
    """Serve the API until a signal says stop."""
    settings = Settings.from_environment()
    logs.set_up(settings)
    database = Database(settings.database_url)
    if settings.migrate_at_start:
        database = open_database(settings.database_url)
        authentication.tell_first_key(database, settings)
    allow_many_files()
    several = settings.api_workers > 1
    if several:
        database.close()
        gc.enable()
    uvicorn.run(
        "app.main:app_from_environment" if several else create_app(settings, database),
        factory=several,
        workers=settings.api_workers,
        host=settings.host,
        port=settings.port,
        http=Connection,
        limit_concurrency=MOST_CONNECTIONS,
        server_header=False,
        # Else uvicorn would believe what every process of this machine says of its address.
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=None,
        timeout_graceful_shutdown=20,
        # On a busy machine a process may take seconds to start: uvicorn would kill it and start another, without end.
        timeout_worker_healthcheck=60,
    )
