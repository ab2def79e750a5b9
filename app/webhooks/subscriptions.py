"""Who is told how jobs fare, and what is yet to be said: the rows of webhooks and deliveries. `app.webhooks.sender`
sends them.

`announce` writes a delivery in the transaction that changes a job, so neither is there without the other. A sender owns
a delivery by the number of its claim, under a lease in the database's own time, as a worker owns a job. The
caller opens the transaction and commits it.
"""

import base64
import json
import random
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.platform.database import hold, moment, now, seconds_from_now
from app.projects import quotas
from app.tables import Delivery, Job, Webhook

TEST_EVENT = "webhook.test"
PAUSES = (0, 5, 5 * 60, 30 * 60, *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)))
"""Seconds before each attempt, as Standard Webhooks proposes. After the last attempt a delivery has failed."""
KEEP_DAYS = 30
"""How far the log of deliveries goes back."""
MAX_WEBHOOKS = 20
"""Webhooks that one project may have."""
ROTATION_SECONDS = 24 * 3600
"""For so long the secret before the last one signs, too."""
_JITTER = 0.2
"""Pauses are up to this much longer, so that what failed together is not tried together."""


class AddressTaken(Exception):
    """The project has a webhook with this address, the argument."""


class TooMany(Exception):
    """The project has as many webhooks as it may: the argument."""


class Disabled(Exception):
    """Nothing is sent to a webhook that is disabled: the argument is its id."""


class NamedIsDisabled(Exception):
    """The webhook with the address that a job names is disabled."""


@dataclass(frozen=True)
class Sending:
    """One sender's hold on a delivery, and all that it sends."""

    id: str
    claim_number: int
    attempt: int
    webhook_id: str
    url: str
    secrets: tuple[str, ...]
    payload: str


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. No error means that the receiver has the message."""

    response_status: int | None
    error: str | None
    duration: float


def create(
    session: Session, project_id: str, *, url: str, events: Sequence[str], description: str, limit: int
) -> Webhook:
    """Make a webhook with a secret of its own. Raises AddressTaken, and TooMany where there would be more than `limit`:
    then the caller takes all back."""
    webhook = Webhook(
        project_id=project_id, url=url, events=list(events), description=description, secret=_new_secret()
    )
    _save(session, webhook)
    quotas.take_turn(session, project_id)
    count = select(func.count()).select_from(Webhook).where(Webhook.project_id == project_id)
    if session.scalars(count).one() > limit:
        raise TooMany(limit)
    return webhook


def change(session: Session, webhook: Webhook, changes: dict[str, Any]) -> None:
    """Change url, events, description or disabled. Raises AddressTaken, Deleted."""
    hold(session, Webhook, webhook.id)
    disabled = changes.pop("disabled", None)
    if disabled is not None and disabled != (webhook.disabled_at is not None):
        webhook.disabled_at = now() if disabled else None
        webhook.disabled_reason = "requested" if disabled else None
    for name, value in changes.items():
        setattr(webhook, name, value)
    webhook.updated_at = now()
    _save(session, webhook)


def remove(session: Session, webhook: Webhook) -> None:
    """Delete a webhook with its deliveries: what was not yet sent is never sent. Raises Deleted."""
    session.delete(hold(session, Webhook, webhook.id))


def rotate_secret(session: Session, webhook: Webhook) -> None:
    """Give a webhook a new secret; the one before signs along for ROTATION_SECONDS. Raises Deleted."""
    hold(session, Webhook, webhook.id)
    webhook.previous_secret, webhook.secret = webhook.secret, _new_secret()
    webhook.previous_until = seconds_from_now(ROTATION_SECONDS)
    webhook.updated_at = now()
    _save(session, webhook)


def enlist(session: Session, project_id: str, url: str, *, limit: int) -> Webhook | None:
    """See that the project has a webhook with the address that a job names; give it where it had to be made. Raises
    TooMany."""
    if _named(session, project_id, url):
        return None
    try:
        return create(session, project_id, url=url, events=(), description="named by a job", limit=limit)
    except AddressTaken:
        # By another job at the same moment.
        return None


def check_named(session: Session, project_id: str, url: str) -> None:
    """See that the webhook that a job names is enabled. Raises NamedIsDisabled."""
    webhook = _named(session, project_id, url)
    if webhook and webhook.disabled_at is not None:
        raise NamedIsDisabled


def announce(session: Session, job: Job) -> None:
    """Note for every webhook that wants to know it, of all jobs or of this one, what the job's status is now. Nobody is
    told of shards."""
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
    # Whoever deletes one at this moment is waited for. All who lock several do so in one order.
    there = select(Webhook.id).where(Webhook.id.in_(wanted)).order_by(Webhook.id)
    for webhook_id in session.scalars(there.with_for_update(read=True, key_share=True)).all():
        session.add(_delivery(wanted[webhook_id], event, job.updated_at, _in_short(job), job_id=job.id))


def test(session: Session, webhook: Webhook) -> Delivery:
    """Send an event that says nothing. Raises Disabled, Deleted."""
    _check_enabled(hold(session, Webhook, webhook.id, lets_change=True))
    at = moment(session)
    delivery = _delivery(webhook, TEST_EVENT, at, {"id": webhook.id, "object": "webhook"}, job_id=None)
    session.add(delivery)
    session.flush()
    return delivery


def redeliver(session: Session, webhook: Webhook, delivery: Delivery) -> None:
    """Send a delivery again, from its first attempt on; one that still waits for its next attempt is sent now. Raises
    Disabled, Deleted."""
    _check_enabled(hold(session, Webhook, webhook.id, lets_change=True))
    hold(session, Delivery, delivery.id)
    anew: dict[str, Any] = {"next_attempt_at": now()}
    if delivery.status != "pending":
        anew |= {"status": "pending", "attempts": 0, "finished_at": None, "error": None, "response_status": None}
    statement = update(Delivery).where(Delivery.id == delivery.id).values(anew)
    session.execute(statement, execution_options={"synchronize_session": False})
    session.refresh(delivery)


def is_any_due(session: Session) -> bool:
    """Whether there is anything to send now."""
    due = select(Delivery.id).join(Webhook).where(*_due(), Webhook.disabled_at.is_(None))
    return session.scalar(due.limit(1)) is not None


def claim(session: Session, *, limit: int, per_webhook: int, lease_seconds: float) -> list[Sending]:
    """Take what is to be sent now. No webhook has more than about `per_webhook` attempts under way at once, whoever
    makes them, and each gets its first before any gets its second: a slow receiver is its own problem."""
    place = func.row_number().over(partition_by=Delivery.webhook_id, order_by=(Delivery.next_attempt_at, Delivery.id))
    waiting = (
        select(Delivery.id, Delivery.webhook_id, place.label("place"))
        .join(Webhook)
        .where(*_due(), Webhook.disabled_at.is_(None))
        .subquery()
    )
    busy = (
        select(Delivery.webhook_id, func.count().label("count"))
        .where(Delivery.status == "pending", Delivery.lease_until > now())
        .group_by(Delivery.webhook_id)
        .subquery()
    )
    chosen = (
        select(Delivery.id)
        .join(waiting, waiting.c.id == Delivery.id)
        .outerjoin(busy, busy.c.webhook_id == Delivery.webhook_id)
        .where(waiting.c.place + func.coalesce(busy.c.count, 0) <= per_webhook)
        .order_by(waiting.c.place)
        .limit(limit)
        .with_for_update(skip_locked=True, of=Delivery)
    )
    taken = (
        update(Delivery)
        # The conditions once more: they hold of the row as it is now, not as the choice has seen it.
        .where(Delivery.id.in_(chosen), *_due())
        .values(
            claim_number=Delivery.claim_number + 1,
            attempts=Delivery.attempts + 1,
            lease_until=seconds_from_now(lease_seconds),
        )
        .returning(Delivery)
    )
    deliveries = session.scalars(taken, execution_options={"synchronize_session": False}).all()
    webhooks = _with_secrets(session, {delivery.webhook_id for delivery in deliveries})
    return [
        Sending(
            delivery.id, delivery.claim_number, delivery.attempts, delivery.webhook_id, *webhooks[delivery.webhook_id],
            delivery.payload,
        )
        for delivery in deliveries
    ]  # fmt: skip


def settle(session: Session, sending: Sending, outcome: Outcome) -> None:
    """Write how an attempt ended, and when the next one is due. A receiver that answers
    410 wants nothing more: its webhook is disabled. Where the delivery is another sender's by now, nothing changes."""
    values: dict[str, Any] = {
        "response_status": outcome.response_status,
        "duration": outcome.duration,
        "error": outcome.error,
        "lease_until": None,
        "next_attempt_at": None,
        "finished_at": now(),
    }
    gone = outcome.response_status == 410
    if outcome.error is None:
        values["status"] = "succeeded"
    elif gone or sending.attempt >= len(PAUSES):
        values["status"] = "failed"
    else:
        pause = PAUSES[sending.attempt] * random.uniform(1, 1 + _JITTER)
        values |= {"next_attempt_at": seconds_from_now(pause), "finished_at": None}
    if gone:
        # Before the delivery, as whoever deletes the webhook does: two that go the other way would wait for each other.
        session.execute(select(Webhook.id).where(Webhook.id == sending.webhook_id).with_for_update())
    owned = Delivery.id == sending.id, Delivery.claim_number == sending.claim_number, Delivery.status == "pending"
    settled = session.scalars(update(Delivery).where(*owned).values(values).returning(Delivery.id)).all()
    if settled and gone:
        webhook = update(Webhook).where(Webhook.id == sending.webhook_id, Webhook.disabled_at.is_(None))
        session.execute(webhook.values(disabled_at=now(), disabled_reason="gone", updated_at=now()))


def forget(session: Session, *, days: float) -> None:
    """Delete the deliveries that came to their end so many days ago, or whose webhook was disabled then."""
    before = seconds_from_now(-days * 24 * 3600)
    disabled = select(Webhook.id).where(Webhook.disabled_at < before)
    session.execute(delete(Delivery).where(or_(Delivery.finished_at < before, Delivery.webhook_id.in_(disabled))))


def _due() -> tuple[ColumnElement[bool], ...]:
    free = or_(Delivery.lease_until.is_(None), Delivery.lease_until < now())
    return Delivery.status == "pending", Delivery.next_attempt_at <= now(), free


def _with_secrets(session: Session, ids: Collection[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Give each webhook's address and the secrets that sign now."""
    signs_along = and_(Webhook.previous_secret.is_not(None), Webhook.previous_until > now())
    rows = session.execute(select(Webhook, signs_along).where(Webhook.id.in_(ids)))
    return {
        webhook.id: (webhook.url, (webhook.secret, *([webhook.previous_secret] if both else ())))
        for webhook, both in rows
    }


def _delivery(webhook: Webhook, event: str, at: datetime, data: dict[str, Any], *, job_id: str | None) -> Delivery:
    payload = {"type": event, "timestamp": at.isoformat(), "data": data}
    return Delivery(webhook_id=webhook.id, type=event, job_id=job_id, payload=json.dumps(payload))


def _in_short(job: Job) -> dict[str, Any]:
    """Say little: whoever wants more asks the API, which knows better by then."""
    return {
        "id": job.id,
        "object": "job",
        "name": job.name,
        "kind": job.kind,
        "status": job.status,
        "attempt": job.attempt,
        "failure": {"code": job.failure["code"]} if job.failure else None,
    }


def _named(session: Session, project_id: str, url: str) -> Webhook | None:
    return session.scalars(select(Webhook).where(Webhook.project_id == project_id, Webhook.url == url)).one_or_none()


def _check_enabled(webhook: Webhook) -> None:
    if webhook.disabled_at is not None:
        raise Disabled(webhook.id)


def _save(session: Session, webhook: Webhook) -> None:
    url = webhook.url  # a failed write takes it back
    try:
        with session.begin_nested():
            session.add(webhook)
    except IntegrityError as error:
        raise AddressTaken(url) from error
    session.refresh(webhook)


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
