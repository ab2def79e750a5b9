"""Deliveries: events on their way to webhooks. `app.webhooks.sender` sends them.

`queue` writes a delivery in the transaction that changes a job, so that neither is committed without the other. A
sender claims a delivery under a lease of `app.platform.leases`. The caller opens the transaction and commits it.
"""

import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, Subquery, and_, func, select, update
from sqlalchemy.orm import Session

from app.platform import leases
from app.platform.database import lock_row, moment, now, seconds_from_now
from app.platform.paging import Part, Place, list_rows
from app.projects import audit
from app.tables import Delivery, Job, Webhook
from app.webhooks.subscriptions import check_enabled

TEST_EVENT = "webhook.test"
PAUSES = (0, 5, 5 * 60, 30 * 60, *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)))
"""Seconds before each try, as Standard Webhooks proposes. After the last try a delivery has failed."""
_JITTER = 0.2
"""Pauses are longer by a random part of up to this, so that deliveries which failed together are spread out."""


@dataclass(frozen=True)
class ClaimedDelivery:
    """One sender's claim of a delivery, and all that it sends."""

    id: str
    attempt: int
    """The fencing token."""
    tries: int
    """The number of this try, from 1."""
    webhook_id: str
    url: str
    secrets: tuple[str, ...]
    payload: str


@dataclass(frozen=True)
class Outcome:
    """How a try ended. No error means that the receiver has accepted the message."""

    response_status: int | None
    error: str | None
    duration: float
    """Seconds."""


def queue(session: Session, job: Job) -> None:
    """Write a delivery of the job's new status for each webhook that subscribes to it, for all jobs or for this one.
    Shards have no deliveries."""
    if job.parent_id:
        return
    event = f"job.{job.status}"
    named = job.spec.get("webhook") or {"url": None, "events": ()}
    of_project = select(Webhook).where(Webhook.project_id == job.project_id, Webhook.disabled_at.is_(None))
    wanted = {
        webhook.id: webhook
        for webhook in session.scalars(of_project)
        if event in webhook.events or (webhook.url == named["url"] and event in named["events"])
    }
    if not wanted:
        return
    # Waits for transactions that delete one of them. All transactions lock several of them in the same order.
    there = select(Webhook.id).where(Webhook.id.in_(wanted)).order_by(Webhook.id)
    for webhook_id in session.scalars(there.with_for_update(read=True, key_share=True)).all():
        session.add(_delivery(wanted[webhook_id], event, job.updated_at, _summarise(job), job_id=job.id))


def test(session: Session, webhook: Webhook) -> Delivery:
    """Queue a test event. Raises Disabled, Deleted."""
    check_enabled(lock_row(session, Webhook, webhook.id, lets_change=True))
    at = moment(session)
    delivery = _delivery(webhook, TEST_EVENT, at, {"id": webhook.id, "object": "webhook"}, job_id=None)
    session.add(delivery)
    session.flush()
    audit.record(session, webhook.project_id, "webhook.test", webhook.id, delivery=delivery.id)
    return delivery


def redeliver(session: Session, webhook: Webhook, delivery: Delivery) -> None:
    """Queue a delivery again, with all its tries. One that waits for its next try is sent now. Raises Disabled,
    Deleted."""
    check_enabled(lock_row(session, Webhook, webhook.id, lets_change=True))
    lock_row(session, Delivery, delivery.id)
    values: dict[str, Any] = {"next_attempt_at": now()}
    if delivery.status != "pending":
        values |= {"status": "pending", "tries": 0, "finished_at": None, "error": None, "response_status": None}
    statement = update(Delivery).where(Delivery.id == delivery.id).values(values)
    session.execute(statement, execution_options={"synchronize_session": False})
    audit.record(session, webhook.project_id, "webhook.redeliver", webhook.id, delivery=delivery.id)
    session.refresh(delivery)


def is_any_due(session: Session) -> bool:
    """Whether a delivery is due now."""
    due = select(Delivery.id).join(Webhook).where(*_due(), Webhook.disabled_at.is_(None))
    return session.scalar(due.limit(1)) is not None


def claim(
    session: Session, *, owner: str, limit: int, per_webhook: int, per_project: int, lease_seconds: float
) -> list[ClaimedDelivery]:
    """Claim up to `limit` due deliveries.

    No webhook has more than about `per_webhook` tries under way at once in all processes, and no project more than
    about `per_project`. Each project gets its first before any gets its second, and each of its webhooks likewise: so
    a slow receiver delays only itself.
    """
    rank = _rank(Delivery.webhook_id, Delivery.next_attempt_at, Delivery.id)
    due = (
        select(Delivery.id, Delivery.webhook_id, Webhook.project_id, rank)
        .join(Webhook)
        .where(*_due(), Webhook.disabled_at.is_(None))
        .subquery()
    )
    busy = _busy(Delivery.webhook_id)
    in_webhook = due.c.rank + func.coalesce(busy.c.count, 0)
    fitting = (
        select(due.c.id, due.c.project_id, _rank(due.c.project_id, in_webhook, due.c.id))
        .outerjoin(busy, busy.c.key == due.c.webhook_id)
        .where(in_webhook <= per_webhook)
        .subquery()
    )
    busy = _busy(Webhook.project_id)
    chosen = (
        select(Delivery.id)
        .join(fitting, fitting.c.id == Delivery.id)
        .outerjoin(busy, busy.c.key == fitting.c.project_id)
        .where(fitting.c.rank + func.coalesce(busy.c.count, 0) <= per_project)
        .order_by(fitting.c.rank)
        .limit(limit)
    )
    deliveries = leases.claim(
        session,
        Delivery,
        leases.any_of(Delivery, chosen),
        *_due(),
        owner=owner,
        seconds=lease_seconds,
        tries=Delivery.tries + 1,
    )
    webhooks = _with_secrets(session, {delivery.webhook_id for delivery in deliveries})
    return [
        ClaimedDelivery(
            delivery.id,
            delivery.attempt,
            delivery.tries,
            delivery.webhook_id,
            *webhooks[delivery.webhook_id],
            delivery.payload,
        )
        for delivery in deliveries
    ]


def record_outcome(session: Session, held: ClaimedDelivery, outcome: Outcome) -> None:
    """Write how a try ended, and when the next one is due. Where another sender holds the delivery by now, nothing
    changes.

    A receiver that answers 410 wants no more events: its webhook is disabled.
    """
    values: dict[str, Any] = {
        "response_status": outcome.response_status,
        "duration": outcome.duration,
        "error": outcome.error,
        "next_attempt_at": None,
        "finished_at": now(),
    }
    gone = outcome.response_status == 410
    if outcome.error is None:
        values["status"] = "succeeded"
    elif gone or held.tries >= len(PAUSES):
        values["status"] = "failed"
    else:
        pause = PAUSES[held.tries] * random.uniform(1, 1 + _JITTER)
        values |= {"next_attempt_at": seconds_from_now(pause), "finished_at": None}
    if gone:
        # Before the delivery, as a deletion of the webhook does: two transactions in opposite order would wait for each
        # other.
        session.execute(select(Webhook.id).where(Webhook.id == held.webhook_id).with_for_update())
    fence = leases.fence(Delivery, held.id, held.attempt)
    written = leases.change(session, Delivery, *fence, **leases.RELEASED, **values)
    if written and gone:
        webhook = update(Webhook).where(Webhook.id == held.webhook_id, Webhook.disabled_at.is_(None))
        session.execute(webhook.values(disabled_at=now(), disabled_reason="gone", updated_at=now()))


def _rank(key: SQLColumnExpression[str], *order: SQLColumnExpression[Any]) -> ColumnElement[int]:
    """Number the rows with the same key from 1, in an order."""
    return func.row_number().over(partition_by=key, order_by=order).label("rank")


def _busy(key: SQLColumnExpression[str]) -> Subquery:
    """Count the deliveries under way by a key."""
    return (
        select(key.label("key"), func.count().label("count"))
        .select_from(Delivery)
        .join(Webhook)
        .where(Delivery.status == "pending", Delivery.lease_until > now())
        .group_by(key)
        .subquery()
    )


def _due() -> tuple[ColumnElement[bool], ...]:
    return Delivery.status == "pending", Delivery.next_attempt_at <= now(), leases.is_free(Delivery)


def _with_secrets(session: Session, ids: Collection[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Read each webhook's address, and the secrets that sign now."""
    signs_along = and_(Webhook.previous_secret.is_not(None), Webhook.previous_until > now())
    rows = session.execute(select(Webhook, signs_along).where(Webhook.id.in_(ids)))
    return {
        webhook.id: (webhook.url, (webhook.secret, *([webhook.previous_secret] if both else ())))
        for webhook, both in rows
    }


def _delivery(webhook: Webhook, event: str, at: datetime, data: dict[str, Any], *, job_id: str | None) -> Delivery:
    payload = {"type": event, "timestamp": at.isoformat(), "data": data}
    return Delivery(webhook_id=webhook.id, type=event, job_id=job_id, payload=json.dumps(payload))


def _summarise(job: Job) -> dict[str, Any]:
    """Write the short form of a job. A receiver that needs more asks the API, which has the newest state."""
    return {
        "id": job.id,
        "object": "job",
        "name": job.name,
        "kind": job.kind,
        "status": job.status,
        "attempt": job.attempt,
        "failure": {"code": job.failure["code"]} if job.failure else None,
    }


def list_deliveries(
    session: Session, webhook_id: str, *, status: str | None, after: str | None, limit: int
) -> Part[Delivery]:
    """List a webhook's deliveries, newest first."""
    place = Place([Delivery.webhook_id], [webhook_id])
    if status:
        place = Place([Delivery.webhook_id, Delivery.status], [webhook_id, status])
    return list_rows(session, Delivery, Delivery.id, place, after=after, limit=limit, order="desc")


def find_delivery(session: Session, webhook_id: str, delivery_id: str) -> Delivery | None:
    """Find a delivery of this webhook."""
    owned = Delivery.id == delivery_id, Delivery.webhook_id == webhook_id
    return session.scalars(select(Delivery).where(*owned)).one_or_none()
