"""Dependencies of the routes: the service, a transaction that ends before the response is sent, places to wait in."""

import asyncio
import math
from asyncio import Semaphore
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Path, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, AwareDatetime, BaseModel
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.assets.registry import Registry
from app.http import places
from app.http.places import AllPlaces
from app.http.problems import UnsupportedMediaType
from app.http.rate_limits import Failures, Requests
from app.jobs.watch import Watch
from app.platform.database import THREADS, Database
from app.platform.ids import is_id
from app.platform.queue import Doorbell
from app.platform.settings import Settings
from app.storage import ObjectStore
from app.webhooks import url_policy
from core.schema.strict_json import BadJson, read_json
from core.schema.suggestions import did_you_mean

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """The parts of one running instance."""

    settings: Settings
    database: Database
    store: ObjectStore
    registry: Registry
    watch: Watch
    doorbell: Doorbell
    requests: Requests
    failures: Failures
    writers: Semaphore = field(default_factory=lambda: Semaphore(THREADS // 2))
    """Limits the requests in a writing transaction. A route takes a thread for each of its steps: if requests that wait
    for a lock held all threads, the request that holds the lock could not continue. So every request that writes takes
    this semaphore, or a place among `places.carriers`."""
    places: AllPlaces = field(default_factory=AllPlaces)
    """Bounds, per project, what waits for the object store, for a name server or for a client."""
    store_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(places.STORE))
    """Threads of their own for the object store: one for each place of `places.store`."""
    suspects: Semaphore = field(default_factory=lambda: Semaphore(2))
    """Limits the look-ups of unknown keys from addresses that sent many wrong ones: they delay only each other."""


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]


async def _reading(service: TheService) -> AsyncIterator[Session]:
    # To open and to close it waits for nothing, so it needs no thread.
    with service.database.reading() as session:
        yield session


async def _turn(service: TheService) -> AsyncIterator[None]:
    async with service.writers:
        yield


def _writing(service: TheService, _: Annotated[None, Depends(_turn, scope="function")]) -> Iterator[Session]:
    with service.database.writing() as session:
        yield session


async def in_turn(service: Service, write: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function that has a writing transaction of its own, and nothing else to wait for."""
    async with service.writers:
        return await run_sync(write, *arguments)


async def stored(
    service: Service,
    project_id: str,
    step: Callable[..., Result],
    *arguments: Any,
    seconds: float | None = None,
) -> Result:
    """Run a function that speaks with the object store and holds no transaction, in a thread for that and in a place of
    the project. Raises NoPlace where none is free in time: `seconds`, as `Places.soon` takes them."""
    async with service.places.store.soon(project_id, seconds=seconds):
        return await run_sync(step, *arguments, limiter=service.store_threads)


async def carried(service: Service, project_id: str, step: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function that speaks with the object store and has writing transactions of its own. Raises NoPlace."""
    async with service.places.carriers.soon(project_id):
        return await stored(service, project_id, step, *arguments)


async def pieces(service: Service, project_id: str, content: Generator[bytes]) -> AsyncGenerator[bytes]:
    """Read what comes out of the object store, piece by piece. A slow client holds no place of the store."""
    try:
        while (piece := await stored(service, project_id, next, content, None, seconds=math.inf)) is not None:
            yield piece
    finally:
        content.close()


async def check_address(service: Service, project_id: str, url: str) -> None:
    """Check that a URL may be called, before the writing transaction begins. Raises url_policy.Refused, NoPlace."""
    parsed = url_policy.parse(url, service.settings)
    loop, names = asyncio.get_running_loop(), service.places.names
    await names.take(project_id)
    answer = url_policy.look_up(parsed)

    def end(_: Any) -> None:
        # A server that has stopped has no loop any more, and no use for the place.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(names.give_back, project_id)

    # The thread may last longer than the request, and the place is for the thread.
    answer.add_done_callback(end)
    await url_policy.check(parsed, answer, service.settings)


async def _check_parameters(request: Request) -> None:
    """Refuse parameters that would be ignored, since the route does not know them or takes only one value; and NUL
    characters, which Postgres cannot search for."""
    given = request.query_params.multi_items()
    if not given:
        return
    known = list(dict.fromkeys(_declared(request.scope["route"].dependant)))
    counts = Counter(name for name, _ in given)
    errors = [
        ("unknown", name, f"there is no such parameter here; {did_you_mean(name, known)}" if known else "leave it out")
        for name in counts
        if name not in known
    ]
    errors += [("repeated", name, "give it once") for name in counts if counts[name] > 1 and name != "metadata"]
    errors += [("nul", name, "leave the NUL character out") for name, value in given if "\0" in value]
    if errors:
        raise RequestValidationError(
            [{"loc": ("query", name), "type": code, "msg": text} for code, name, text in errors]
        )


def _declared(dependant: Dependant) -> Iterator[str]:
    """Name the query parameters of a route and of all that it depends on, those in a model one by one."""
    for each in dependant.query_params:
        model = each.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (info.alias or name for name, info in model.model_fields.items())
        else:
            yield each.alias
    for inner in dependant.dependencies:
        yield from _declared(inner)


async def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        detail = f"the body is declared as {media_type or 'nothing'}; send it with Content-Type: application/json"
        raise UnsupportedMediaType(detail)
    body = await request.body()
    try:
        # FastAPI has read it with Python's own reader, to which the last of two values is the only one.
        if body:
            read_json(body)
    except BadJson as error:
        told = {"loc": ("body", *error.path), "type": error.code, "msg": error.message}
        raise RequestValidationError([told]) from None


def cursor(prefix: str) -> Callable[[str | None], str | None]:
    """Make the check of a list's cursor: an id of what is listed."""

    def check(after: str | None) -> str | None:
        if after is not None and not is_id(prefix, after):
            raise PydanticCustomError("not_a_cursor", "give the last_id of the previous page, or leave it out")
        return after

    return check


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("out_of_range", "choose a time of this age, such as 2030-01-31T12:00:00Z") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with its zone."""
JobId = Annotated[str, Path(description="The job's id.")]
CheckpointId = Annotated[str, Path(description="The checkpoint's id.")]
UploadId = Annotated[str, Path(description="The upload's id.")]
KeyId = Annotated[str, Path(description="The key's id, such as key_...; not the key itself.")]
AnyProjectId = Annotated[str, Path(description="The project's id.")]
AssetName = Annotated[str, Path(description="The id or the name.")]
Parameters = Depends(_check_parameters)
"""The check of query parameters, which `app.http.authentication.needs` brings to every route with a key."""
Json = Depends(_require_json)

# By default FastAPI ends a dependency after the answer is sent: a 201 would leave before the commit.
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]
