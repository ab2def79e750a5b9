"""What tests make instances of the service from: projects, keys, a real HTTP server on a free port."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from app.http.connections import Connection
from app.main import create_app
from app.operations.maintenance import PERIODIC_TASKS, PeriodicTask
from app.platform.database import Database, open_database
from app.platform.settings import Settings
from app.projects.keys import new_key
from app.schemas import SCOPES, Scope
from app.tables import Project
from tests.support.constants import constants

CONSTANTS = {
    "app.http.rate_limits.AUTH_FAILURES": 10_000,
    "app.jobs.claims.CRASH_BACKOFF_SECONDS": 0,
    "app.jobs.watch.WATCH_SECONDS": 0.02,
    "app.platform.settings.HEARTBEATS_PER_LEASE": 300,
    "app.routes.uploads.PART_BYTES": 5 * 1024**2,
    "worker.files.transfer.PUBLISH_SECONDS": 0.2,
    "worker.lease.CANCEL_GRACE_SECONDS": 1,
}
"""Constants that suit a test."""
DIGITS = {"base_model": "digits-cnn-linf"}


@contextmanager
def new_instance(folder: Path, **chosen: Any) -> Iterator[tuple[Settings, Database]]:
    """Make an instance in a folder of its own, with clocks that suit a test."""
    settings = Settings(
        data_dir=folder,
        poll_seconds=0.02,
        lease_seconds=30,
        **chosen,
    )
    settings.make_folders()
    with constants(CONSTANTS):
        database = open_database(settings.database_url)
        yield settings, database
        database.close()


def add_project(database: Database) -> Project:
    """Make a project."""
    with database.writing() as session:
        project = Project(name="test")
        session.add(project)
    return project


def add_key(database: Database, project: Project, *scopes: Scope) -> str:
    """Make a key to a project, that may do all or only what is given."""
    with database.writing() as session:
        return new_key(session, project, scopes=scopes or SCOPES)[1]


@contextmanager
def serving(
    settings: Settings, database: Database, *, periodic_tasks: Sequence[PeriodicTask] = PERIODIC_TASKS
) -> Iterator[str]:
    """Serve the API in a thread, and give its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, database, periodic_tasks=periodic_tasks), http=Connection, log_level="warning"
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def calling(url: str, key: str) -> Iterator[httpx2.Client]:
    """Call the API with a key."""
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        yield client
