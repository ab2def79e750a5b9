"""Webhooks and their deliveries."""

from datetime import datetime
from typing import Literal

from pydantic import Field

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
DeliveryType = JobEvent | Literal["webhook.test"]
"""The subject of a message to a webhook."""
ENDINGS: tuple[JobEvent, ...] = ("job.succeeded", "job.failed", "job.cancelled")


class Webhook(Listed):
    """An address that receives messages about jobs."""

    object: Literal["webhook"]
    """Type of the object."""
    url: str
    """Address that messages are posted to."""
    events: list[JobEvent]
    """Events of every job of the project that are sent there; a job that names this address in its spec can add
    more."""
    description: str
    """A description for people."""
    disabled: bool
    """Whether messages are withheld."""
    disabled_reason: DisabledReason | None
    """requested: a user disabled it. gone: the receiver answered 410."""
    created_at: datetime
    """When the webhook was made."""
    updated_at: datetime
    """When the webhook last changed."""
    previous_secret_until: datetime | None
    """Until then, messages are also signed with the previous secret."""


class WebhookWithSecret(Webhook):
    """A webhook with the secret that signs its messages."""

    secret: str = Field(repr=False)
    """The secret that verifies messages; the libraries of Standard Webhooks take it as it is. Only this answer contains
    it."""


class Delivery(Listed):
    """A message to a webhook. Its id is the `webhook-id` header of the message, in every attempt."""

    object: Literal["delivery"]
    """Type of the object."""
    webhook_id: str
    """The webhook that receives it."""
    type: DeliveryType
    """The event: job.<status> or webhook.test."""
    job_id: str | None
    """The job that the event is about."""
    status: DeliveryStatus
    """pending: more attempts follow. succeeded: an attempt was answered with 2xx. failed: no attempt was."""
    attempts: int
    """Number of attempts, including one in progress, since the delivery was made or last requested again."""
    response_status: int | None
    """HTTP status of the answer to the last attempt, if there was one."""
    duration: float | None
    """Duration of the last attempt in seconds."""
    error: str | None
    """What went wrong in the last attempt."""
    next_attempt_at: datetime | None
    """When the next attempt is due."""
    created_at: datetime
    """When the event happened."""
    finished_at: datetime | None
    """When the delivery succeeded or failed."""
