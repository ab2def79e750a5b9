"""What routes are given: the service they belong to, and a transaction that ends before their answer leaves."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.database import Database
from app.inventory import Inventory
from app.settings import Settings
from app.storage import ObjectStore
from app.tables import is_id
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


def _once(request: Request) -> None:
    """Refuse a parameter that is given twice, unless it is a list: one of the two would be ignored."""
    counts = Counter(name for name, _ in request.query_params.multi_items() if name != "metadata")
    message = "give it once"
    repeated = [{"loc": ("query", name), "type": "repeated", "msg": message} for name in counts if counts[name] > 1]
    if repeated:
        raise RequestValidationError(repeated)


def cursor(prefix: str) -> Callable[[str | None], str | None]:
    """Make the check of a list's cursor: an id of what is listed."""

    def check(after: str | None) -> str | None:
        if after is not None and not is_id(prefix, after):
            raise PydanticCustomError("not_a_cursor", "give the last_id of the part before, or leave it out")
        return after

    return check


JobId = Annotated[str, Path(description="The job's id.")]
CheckpointId = Annotated[str, Path(description="The checkpoint's id.")]
Once = Depends(_once)

# By default FastAPI ends a dependency after the answer is sent: a 201 would leave before the commit.
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]
