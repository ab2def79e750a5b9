"""Webhooks and their deliveries."""

from collections.abc import Iterable

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from app.schemas.webhooks import Delivery, Webhook
from client.display.screen import STYLES, table_of


def webhooks_table(webhooks: Iterable[Webhook]) -> RenderableType:
    """Show webhooks, one per line."""
    table = table_of("id", "address", "events", "state", "description")
    for webhook in webhooks:
        events = " ".join(event.removeprefix("job.") for event in webhook.events) or "of jobs that name it"
        state = f"disabled ({webhook.disabled_reason})" if webhook.disabled else "enabled"
        table.add_row(webhook.id, escape(webhook.url), events, state, escape(webhook.description))
    return table


def deliveries_table(deliveries: Iterable[Delivery]) -> RenderableType:
    """Show the messages to a webhook, one per line."""
    table = table_of("id", "event", "job", "happened", "status", "attempts", "answer", "next attempt", "error")
    for delivery in deliveries:
        table.add_row(
            delivery.id,
            delivery.type,
            delivery.job_id or "",
            f"{delivery.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
            Text(delivery.status, style=STYLES.get(delivery.status, "")),
            str(delivery.attempts),
            str(delivery.response_status or ""),
            f"{delivery.next_attempt_at.astimezone():%H:%M:%S}" if delivery.next_attempt_at else "",
            escape(delivery.error or ""),
        )
    return table


def delivery_line(delivery: Delivery) -> str:
    """Write the status of a message in a line."""
    answer = f", answered {delivery.response_status}" if delivery.response_status and not delivery.error else ""
    error = f": {delivery.error}" if delivery.error else ""
    return escape(f"{delivery.id} ({delivery.type}) is {delivery.status}{answer}{error}")
