"""Workers: who they are, and what each works on. All of them are an admin's to see."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator

from app import schemas, tables
from app.http.authentication import needs
from app.http.dependencies import Reading, cursor
from app.http.problems import InvalidParameter, problems
from app.jobs import workers
from app.platform.database import moment
from app.platform.paging import Order

router = APIRouter(tags=["workers"], dependencies=[needs("admin")])


@router.get("/workers", responses=problems(InvalidParameter))
def list_workers(
    session: Reading,
    after: Annotated[
        str | None, AfterValidator(cursor("wrk")), Query(description="The cursor: the `last_id` of the previous page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Workers in one page.")] = 20,
    order: Annotated[Order, Query(description="desc: those that started last first.")] = "desc",
) -> schemas.Page[schemas.Worker]:
    """List the workers of the instance, with what each has and what it works on. A worker that ends leaves the list."""
    part = workers.list_workers(session, after=after, limit=limit, order=order)
    at = moment(session)
    living = [worker.name for worker in part.rows if worker.alive_until > at]
    held = workers.held_by(session, living)
    shown = [_show(worker, held.get(worker.name, ()), is_alive=worker.alive_until > at) for worker in part.rows]
    return schemas.page(shown, has_more=part.has_more)


def _show(worker: tables.Worker, held: Sequence[workers.Held], *, is_alive: bool) -> schemas.Worker:
    status = "lost" if not is_alive else "stopping" if worker.is_stopping else "alive"
    return schemas.Worker.model_validate(
        {
            "id": worker.id,
            "object": "worker",
            "name": worker.name,
            "status": status,
            "resource_class": worker.resource_class,
            "slots": worker.slots,
            "devices": worker.devices,
            "capabilities": worker.capabilities,
            "versions": worker.versions,
            "started_at": worker.started_at,
            "heartbeat_at": worker.heartbeat_at,
            "work": [asdict(each) for each in held] if is_alive else [],
        }
    )
