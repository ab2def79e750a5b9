"""Webhooks: receivers of job events, their deliveries, and the secrets that sign them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import AfterValidator, Field
from sqlalchemy.orm import Session

from app import schemas, tables
from app.http.authentication import ProjectId, needs
from app.http.body import Body
from app.http.dependencies import Json, Reading, Service, TheService, Writing, check_address, cursor
from app.http.problems import (
    BodyTooLarge,
    InvalidBody,
    InvalidParameter,
    MalformedBody,
    NotFound,
    TooManyAtOnce,
    TooManyWebhooks,
    UnsupportedMediaType,
    WebhookDisabled,
    WebhookExists,
    problems,
)
from app.schemas.webhooks import ENDINGS, JobEvent
from app.webhooks import deliveries, subscriptions, url_policy
from core.schema.spec import Text
from core.schema.validation import FieldError

router = APIRouter(tags=["webhooks"])

WebhookId = Annotated[str, Path(description="The webhook's id.")]
DeliveryId = Annotated[str, Path(description="The delivery's id: the `webhook-id` of the message.")]
After = Query(description="The cursor: the `last_id` of the previous page.")

_BODY = (MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidBody)


class CreateWebhook(Body):
    """The webhook to create."""

    url: str = Field(max_length=url_policy.MOST_CHARACTERS, examples=["https://example.com/temper"])
    """Where to post messages: https, on the public internet unless the operator allows more."""
    events: tuple[JobEvent, ...] = Field(default=ENDINGS, max_length=20)
    """The events to send of every job of the project. An empty list: only those that jobs with this URL ask for."""
    description: Text = Field(default="", max_length=512)
    """For people."""


class UpdateWebhook(Body):
    """The fields to change; omitted fields stay as they are."""

    # None of these defaults is ever used, or shown.
    url: str = Field(default_factory=str, max_length=url_policy.MOST_CHARACTERS)
    """Where to post messages."""
    events: tuple[JobEvent, ...] = Field(default_factory=tuple, max_length=20)
    """The events to send of every job of the project."""
    description: Text = Field(default_factory=str, max_length=512)
    """For people."""
    disabled: bool = Field(default_factory=bool)
    """true: send nothing from now on; what happens meanwhile is never sent. false: send again."""


async def _new(body: CreateWebhook, project_id: ProjectId, service: TheService) -> CreateWebhook:
    await _check_url(service, project_id, body.url)
    return body


async def _changed(body: UpdateWebhook, project_id: ProjectId, service: TheService) -> UpdateWebhook:
    if "url" in body.model_fields_set:
        await _check_url(service, project_id, body.url)
    return body


async def _check_url(service: Service, project_id: str, url: str) -> None:
    try:
        await check_address(service, project_id, url)
    except url_policy.Refused as refusal:
        raise InvalidBody([FieldError(pointer="/url", code="address_refused", detail=str(refusal))]) from None


@router.post(
    "/webhooks",
    status_code=201,
    dependencies=[needs("jobs:write"), Json],
    responses={
        201: {"headers": schemas.headers({"Location": "The webhook."})},
        **problems(*_BODY, WebhookExists, TooManyWebhooks, TooManyAtOnce),
    },
)
def create_webhook(
    body: Annotated[CreateWebhook, Depends(_new)],
    project_id: ProjectId,
    session: Writing,
    response: Response,
) -> schemas.WebhookWithSecret:
    """Create a webhook. The answer has the secret by which its receiver verifies the signatures of messages."""
    webhook = subscriptions.create(
        session,
        project_id,
        url=body.url,
        events=body.events,
        description=body.description,
        limit=subscriptions.MAX_WEBHOOKS,
    )
    response.headers["Location"] = f"/webhooks/{webhook.id}"
    return show_with_secret(webhook, response)


@router.get("/webhooks", responses=problems(InvalidParameter), dependencies=[needs("jobs:read")])
def list_webhooks(
    project_id: ProjectId,
    session: Reading,
    after: Annotated[str | None, AfterValidator(cursor("whk")), After] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Webhooks in one page.")] = 20,
) -> schemas.Page[schemas.Webhook]:
    """List the project's webhooks, oldest first."""
    part = subscriptions.list_webhooks(session, project_id, after=after, limit=limit)
    return schemas.page([_show(webhook) for webhook in part.rows], has_more=part.has_more)


@router.get("/webhooks/{webhook_id}", responses=problems(NotFound), dependencies=[needs("jobs:read")])
def get_webhook(webhook_id: WebhookId, project_id: ProjectId, session: Reading) -> schemas.Webhook:
    """Get a webhook."""
    return _show(_the_webhook(session, project_id, webhook_id))


@router.patch(
    "/webhooks/{webhook_id}",
    responses=problems(*_BODY, NotFound, WebhookExists, TooManyAtOnce),
    dependencies=[needs("jobs:write"), Json],
)
def change_webhook(
    webhook_id: WebhookId, body: Annotated[UpdateWebhook, Depends(_changed)], project_id: ProjectId, session: Writing
) -> schemas.Webhook:
    """Change a webhook."""
    webhook = _the_webhook(session, project_id, webhook_id)
    subscriptions.change(session, webhook, body.model_dump(exclude_unset=True))
    return _show(webhook)


@router.delete(
    "/webhooks/{webhook_id}", status_code=204, responses=problems(NotFound), dependencies=[needs("jobs:write")]
)
def delete_webhook(webhook_id: WebhookId, project_id: ProjectId, session: Writing) -> None:
    """Delete a webhook with its deliveries. Pending messages are never sent."""
    subscriptions.remove(session, _the_webhook(session, project_id, webhook_id))


@router.post(
    "/webhooks/{webhook_id}/test",
    status_code=202,
    responses=problems(NotFound, WebhookDisabled),
    dependencies=[needs("jobs:write")],
)
def test_webhook(webhook_id: WebhookId, project_id: ProjectId, session: Writing) -> schemas.Delivery:
    """Send the webhook a message of type webhook.test. The delivery shows the result."""
    return _show_delivery(deliveries.test(session, _the_webhook(session, project_id, webhook_id)))


@router.post("/webhooks/{webhook_id}/rotate_secret", responses=problems(NotFound), dependencies=[needs("jobs:write")])
def rotate_secret(
    webhook_id: WebhookId, project_id: ProjectId, session: Writing, response: Response
) -> schemas.WebhookWithSecret:
    """Get a new secret. For 24 hours messages are signed with both, so that the receiver can change its secret."""
    webhook = _the_webhook(session, project_id, webhook_id)
    subscriptions.rotate_secret(session, webhook)
    return show_with_secret(webhook, response)


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    responses=problems(NotFound, InvalidParameter),
    dependencies=[needs("jobs:read")],
)
def list_deliveries(
    webhook_id: WebhookId,
    project_id: ProjectId,
    session: Reading,
    status: Annotated[schemas.DeliveryStatus | None, Query(description="Only deliveries in this status.")] = None,
    after: Annotated[str | None, AfterValidator(cursor("dlv")), After] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Deliveries in one page.")] = 20,
) -> schemas.Page[schemas.Delivery]:
    """List the deliveries of a webhook, sent and pending, newest first."""
    webhook = _the_webhook(session, project_id, webhook_id)
    part = deliveries.list_deliveries(session, webhook.id, status=status, after=after, limit=limit)
    return schemas.page([_show_delivery(delivery) for delivery in part.rows], has_more=part.has_more)


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses=problems(NotFound, WebhookDisabled),
    dependencies=[needs("jobs:write")],
)
def redeliver(
    webhook_id: WebhookId, delivery_id: DeliveryId, project_id: ProjectId, session: Writing
) -> schemas.Delivery:
    """Send a message again, with the same `webhook-id`; one that waits for its next attempt is sent now."""
    webhook = _the_webhook(session, project_id, webhook_id)
    delivery = deliveries.find_delivery(session, webhook.id, delivery_id)
    if delivery is None:
        raise NotFound(f"there is no delivery {delivery_id!r} of this webhook")
    deliveries.redeliver(session, webhook, delivery)
    return _show_delivery(delivery)


def _the_webhook(session: Session, project_id: str, webhook_id: str) -> tables.Webhook:
    webhook = subscriptions.find_webhook(session, project_id, webhook_id)
    if webhook is None:
        raise NotFound(f"there is no webhook {webhook_id!r} in this project")
    return webhook


def _facts(webhook: tables.Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "object": "webhook",
        "url": webhook.url,
        "events": webhook.events,
        "description": webhook.description,
        "disabled": webhook.disabled_at is not None,
        "disabled_reason": webhook.disabled_reason,
        "created_at": webhook.created_at,
        "updated_at": webhook.updated_at,
        "previous_secret_until": webhook.previous_until,
    }


def _show(webhook: tables.Webhook) -> schemas.Webhook:
    return schemas.Webhook.model_validate(_facts(webhook))


def show_with_secret(webhook: tables.Webhook, response: Response) -> schemas.WebhookWithSecret:
    """Show a webhook with its secret, in a response that must not be cached."""
    response.headers["Cache-Control"] = "no-store"
    return schemas.WebhookWithSecret.model_validate({**_facts(webhook), "secret": webhook.secret})


def _show_delivery(delivery: tables.Delivery) -> schemas.Delivery:
    return schemas.Delivery.model_validate(
        {
            "id": delivery.id,
            "object": "delivery",
            "webhook_id": delivery.webhook_id,
            "type": delivery.type,
            "job_id": delivery.job_id,
            "status": delivery.status,
            "attempts": delivery.tries,
            "response_status": delivery.response_status,
            "duration": delivery.duration,
            "error": delivery.error,
            "next_attempt_at": delivery.next_attempt_at,
            "created_at": delivery.created_at,
            "finished_at": delivery.finished_at,
        }
    )
