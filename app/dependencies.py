"""What routes are given: the service they belong to, and a transaction that ends before their answer leaves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.database import Database
from app.inventory import Inventory
from app.settings import Settings
from app.storage import ObjectStore
from app.watch import Watch


@dataclass(frozen=True)
class Service:
    """The parts of one running instance."""

    settings: Settings
    database: Database
    store: ObjectStore
    inventory: Inventory
    watch: Watch


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]


def _reading(service: TheService) -> Iterator[Session]:
    with service.database.reading() as session:
        yield session


def _writing(service: TheService) -> Iterator[Session]:
    with service.database.writing() as session:
        yield session


# By default FastAPI ends a dependency after the answer is sent: a 201 would leave before the commit.
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]
