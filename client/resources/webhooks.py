"""Webhooks: addresses that receive messages about jobs, and the log of these messages."""

import time
from collections.abc import Iterator, Sequence

from app.schemas.answer import Page
from app.schemas.webhooks import Delivery, Webhook, WebhookWithSecret
from client.resources.resource import Resource, path_of

DELIVERY_PAUSE = 0.2


class Webhooks(Resource):
    """The webhooks of the project: `temper.webhooks`."""

    def list(self) -> Iterator[Webhook]:
        """Iterate over the webhooks, oldest first."""
        return self._items(Page[Webhook], "/webhooks")

    def add(self, url: str, *, events: Sequence[str] | None = None, description: str = "") -> WebhookWithSecret:
        """Add a webhook for events of the project's jobs, by default for their ends. Only this answer contains the
        secret that signs the messages."""
        body = {"url": url, "description": description, **({"events": [*events]} if events is not None else {})}
        # Not repeated: a second request would find the webhook, and its secret would be lost.
        return self._post(WebhookWithSecret, "/webhooks", body, patience=0)

    def update(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        disabled: bool | None = None,
    ) -> Webhook:
        """Change a webhook. Arguments that are None leave the field as it is."""
        changes = {"url": url, "events": events, "description": description, "disabled": disabled}
        return self._change(Webhook, path_of("webhooks", webhook_id), changes)

    def remove(self, webhook_id: str) -> None:
        """Remove a webhook and its log."""
        self._delete(path_of("webhooks", webhook_id))

    def test(self, webhook_id: str, *, timeout: float = 60.0) -> Delivery:
        """Send a test message; return its delivery after the first attempt, or after `timeout` seconds."""
        delivery = self._post(Delivery, f"{path_of('webhooks', webhook_id)}/test", patience=0)
        deadline = time.monotonic() + timeout
        while delivery.status == "pending" and delivery.error is None and time.monotonic() < deadline:
            time.sleep(DELIVERY_PAUSE)
            same = (each for each in self.deliveries(webhook_id) if each.id == delivery.id)
            delivery = next(same, delivery)
        return delivery

    def deliveries(self, webhook_id: str, *, status: str | None = None) -> Iterator[Delivery]:
        """Iterate over the messages to a webhook, newest first."""
        path = f"{path_of('webhooks', webhook_id)}/deliveries"
        return self._items(Page[Delivery], path, {"status": status} if status else None)

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again under the same id."""
        return self._post(Delivery, f"{path_of('webhooks', webhook_id)}{path_of('deliveries', delivery_id)}/redeliver")

    def rotate_secret(self, webhook_id: str) -> WebhookWithSecret:
        """Give a webhook a new secret, which only this answer contains. Messages are signed with both secrets for 24
        hours."""
        return self._post(WebhookWithSecret, f"{path_of('webhooks', webhook_id)}/rotate_secret", patience=0)
