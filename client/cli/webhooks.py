"""`temper webhooks`: addresses that receive messages about jobs, and the log of these messages."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.output import Output, connect, show
from core.schema.exit_status import ExitStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.schemas.webhooks import Delivery, WebhookWithSecret

webhooks = typer.Typer(no_args_is_help=True, help="List, add and remove webhooks; show and repeat their messages.")

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook, as list shows it.")]


@webhooks.command("list")
def list_webhooks(output: Output = "text") -> None:
    """List the project's webhooks, oldest first."""
    from client.display.webhooks import webhooks_table

    with connect() as temper:
        found = list(temper.webhooks.list())
    show(found, lambda found: webhooks_table(found) if found else "no webhooks", output)


@webhooks.command("add")
def add_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address that messages are posted to.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="An event such as job.running; repeat it. By default the three ends of a job."),
    ] = None,
    description: Annotated[str, typer.Option(help="A description for people.")] = "",
    output: Output = "text",
) -> None:
    """Send events of the project's jobs to an address. Show the secret that signs the messages, only now."""
    with connect() as temper:
        made = temper.webhooks.add(url, events=event, description=description)
    _show_secret(made, f"{made.id} receives {', '.join(made.events)}", output)


@webhooks.command("remove")
def remove_webhook(webhook_id: WebhookId, output: Output = "text") -> None:
    """Remove a webhook and its log. Messages that are not yet sent are never sent."""
    with connect() as temper:
        temper.webhooks.remove(webhook_id)
    show({"removed": webhook_id}, lambda _: f"{webhook_id} is removed", output)


@webhooks.command("enable")
def enable_webhook(webhook_id: WebhookId, output: Output = "text") -> None:
    """Enable a webhook that was disabled, by a user or because its receiver answered 410."""
    _set_disabled(webhook_id, False, output)


@webhooks.command("disable")
def disable_webhook(webhook_id: WebhookId, output: Output = "text") -> None:
    """Send nothing to a webhook. Events that happen while it is disabled are never sent."""
    _set_disabled(webhook_id, True, output)


@webhooks.command("test")
def send_test(webhook_id: WebhookId, output: Output = "text") -> None:
    """Send a test message. Exit with 0 only if the receiver accepts it."""
    with connect() as temper:
        delivery = temper.webhooks.test(webhook_id)
    show(delivery, _delivery, output)
    if delivery.status != "succeeded":
        raise typer.Exit(ExitStatus.FAILED)


@webhooks.command("deliveries")
def list_deliveries(
    webhook_id: WebhookId,
    status: Annotated[str | None, typer.Option(help="Only in this status: pending, succeeded or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this number of messages.")] = 20,
    output: Output = "text",
) -> None:
    """List the messages to a webhook, newest first."""
    from client.display.webhooks import deliveries_table

    with connect() as temper:
        found = list(islice(temper.webhooks.deliveries(webhook_id, status=status), limit))
    show(found, lambda found: deliveries_table(found) if found else "no deliveries", output)


@webhooks.command("redeliver")
def redeliver(
    webhook_id: WebhookId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY", help="The message, as deliveries shows it.")],
    output: Output = "text",
) -> None:
    """Send a message again under the same id, at once if it waits for its next attempt."""
    with connect() as temper:
        delivery = temper.webhooks.redeliver(webhook_id, delivery_id)
    show(delivery, _delivery, output)


@webhooks.command("rotate")
def rotate_secret(webhook_id: WebhookId, output: Output = "text") -> None:
    """Make a new secret and show it, only now. Messages are signed with both secrets for 24 hours."""
    with connect() as temper:
        made = temper.webhooks.rotate_secret(webhook_id)
    _show_secret(made, f"{made.id} signs with it from now on, and for 24 hours also with the previous one", output)


def _set_disabled(webhook_id: str, disabled: bool, output: str) -> None:
    with connect() as temper:
        webhook = temper.webhooks.update(webhook_id, disabled=disabled)
    show(webhook, lambda webhook: f"{webhook.id} is {'disabled' if disabled else 'enabled'}", output)


def _show_secret(made: "WebhookWithSecret", meaning: str, output: str) -> None:
    show(made, lambda made: f"{made.secret}\nshown only now; {meaning}", output)


def _delivery(delivery: "Delivery") -> "RenderableType":
    from client.display.webhooks import delivery_line

    return delivery_line(delivery)
