"""`temper webhooks`: who is told how jobs fare, and what was sent to them."""

from itertools import islice
from typing import Annotated

import typer

from client import display
from client.output import Output, show
from client.records import NewWebhook
from client.temper import Temper

webhooks = typer.Typer(
    no_args_is_help=True, help="List, add and remove webhooks; see what was sent, and send it again."
)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook, as list shows it.")]


@webhooks.command("list")
def list_webhooks(output: Output = "text") -> None:
    """List the project's webhooks, oldest first."""
    with Temper() as temper:
        found = list(temper.webhooks())
    show(found, display.webhooks_table(found) if found else "no webhooks", output)


@webhooks.command("add")
def add_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to post messages.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="job.running or the like; repeat it. By default the three ends of a job."),
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    output: Output = "text",
) -> None:
    """Have an address told how jobs fare, and show the secret that signs what it is told, this once."""
    with Temper() as temper:
        made = temper.add_webhook(url, events=event, description=description)
    _show_secret(made, f"{made.id} is told of {', '.join(made.events)}", output)


@webhooks.command("remove")
def remove_webhook(webhook_id: WebhookId, output: Output = "text") -> None:
    """Remove a webhook with its log. What was not yet sent is never sent."""
    with Temper() as temper:
        temper.remove_webhook(webhook_id)
    show({"removed": webhook_id}, f"{webhook_id} is removed", output)


@webhooks.command("enable")
def enable_webhook(webhook_id: WebhookId, output: Output = "text") -> None:
    """Send to a webhook again that was disabled, by somebody or because its receiver answered 410."""
    with Temper() as temper:
        webhook = temper.change_webhook(webhook_id, disabled=False)
    show(webhook, f"{webhook.id} is enabled", output)


@webhooks.command("disable")
def disable_webhook(webhook_id: WebhookId, output: Output = "text") -> None:
    """Send nothing to a webhook from now on. What happens meanwhile is never sent."""
    with Temper() as temper:
        webhook = temper.change_webhook(webhook_id, disabled=True)
    show(webhook, f"{webhook.id} is disabled", output)


@webhooks.command("test")
def send_test(webhook_id: WebhookId, output: Output = "text") -> None:
    """Send a message that says nothing. Exit with 0 only if the receiver takes it."""
    with Temper() as temper:
        delivery = temper.test_webhook(webhook_id)
    show(delivery, display.delivery_line(delivery), output)
    if delivery.status != "succeeded":
        raise typer.Exit(1)


@webhooks.command("deliveries")
def list_deliveries(
    webhook_id: WebhookId,
    status: Annotated[str | None, typer.Option(help="Only in this status: pending, succeeded or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    output: Output = "text",
) -> None:
    """List what was sent to a webhook or is to be, newest first."""
    with Temper() as temper:
        found = list(islice(temper.deliveries(webhook_id, status=status), limit))
    show(found, display.deliveries_table(found) if found else "no deliveries", output)


@webhooks.command("redeliver")
def redeliver(
    webhook_id: WebhookId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY", help="The message, as deliveries shows it.")],
    output: Output = "text",
) -> None:
    """Send a message again, under the same id; one that waits for its next attempt is sent now."""
    with Temper() as temper:
        delivery = temper.redeliver(webhook_id, delivery_id)
    show(delivery, display.delivery_line(delivery), output)


@webhooks.command("rotate")
def rotate_secret(webhook_id: WebhookId, output: Output = "text") -> None:
    """Get a new secret, and show it, this once. The one before signs along for 24 hours."""
    with Temper() as temper:
        made = temper.rotate_secret(webhook_id)
    _show_secret(made, f"{made.id} signs with this from now on, and for 24 hours with the one before, too", output)


def _show_secret(made: NewWebhook, story: str, output: str) -> None:
    show(made, f"{made.secret}\nshown only now; {story}", output)
