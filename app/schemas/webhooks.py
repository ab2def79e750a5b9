"""Webhooks, and what was sent to them."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Listed

DisabledReason = Literal["requested", "gone"]
DeliveryStatus = Literal["pending", "succeeded", "failed"]
JobEvent = Literal[
    "job.queued",
    "job.running",
    "job.pausing",
    "job.paused",
    "job.stopping",
    "job.cancelling",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
]
"""A job has changed to this status."""
ENDINGS: tuple[JobEvent, ...] = ("job.succeeded", "job.failed", "job.cancelled")


class Webhook(Listed):
    """An address that is told how jobs fare."""

    object: Literal["webhook"]
    """What this is."""
    url: str
    """Where messages are posted."""
    events: list[JobEvent]
    """What it is told of every job of the project; a job that names this address in its spec may ask for more."""
    description: str
    """For people."""
    disabled: bool
    """Whether nothing is sent there now."""
    disabled_reason: DisabledReason | None
    """requested by a user, or gone: the receiver answered 410."""
    created_at: datetime
    """When it was made."""
    updated_at: datetime
    """When it last changed."""
    previous_secret_until: datetime | None
    """Until then, messages are signed with the secret before this one, too."""


class WebhookWithSecret(Webhook):
    """A webhook with the secret that signs its messages, which no other answer shows."""

    secret: str
    """Verify messages with it by Standard Webhooks, whose libraries take it as it is."""


class Delivery(Listed):
    """One message to one webhook. Its id is the `webhook-id` of the message, in every attempt."""

    object: Literal["delivery"]
    """What this is."""
    webhook_id: str
    """Whom it is for."""
    type: str
    """What has happened: job.<status> or webhook.test."""
    job_id: str | None
    """The job that it is about."""
    status: DeliveryStatus
    """pending while there are attempts to come, succeeded when an attempt was answered with 2xx, else failed."""
    attempts: int
    """Attempts made, one that is under way included, since it was made or last asked for again."""
    response_status: int | None
    """What the last attempt was answered with, if it was."""
    duration: float | None
    """Seconds that the last attempt took."""
    error: str | None
    """What was wrong with the last attempt."""
    next_attempt_at: datetime | None
    """When the next attempt is due."""
    created_at: datetime
    """When it happened."""
    finished_at: datetime | None
    """When it had succeeded or failed."""
