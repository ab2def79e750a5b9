"""Events of a job, one per line."""

from typing import Any

from rich.text import Text

from app.schemas.jobs import Result
from client.display.reports import accuracies_line, percent
from core.schema.events import Stamped
from core.schema.progress import Rate

_SENTENCES = {
    "attacked": "{subject}: {attack} on {threat} leaves {robust} of {examples} points right ({done} of {total})",
    "shard": "{number} of {count} is {status}; {done} done",
    "saved": "{kind}, {size:,} bytes, sha256 {sha256}",
    "failed": "{message} {hint}",
    "finished": "after {seconds:.1f} seconds",
}


def event_line(event: Stamped) -> Text:
    """Show an event with its number, time and type."""
    time = f"{event.created_at.astimezone():%H:%M:%S}"
    return Text.assemble((f"{event.seq:>4}  {time}  ", "dim"), (f"{event.type:<15} ", "bold"), sentence(event))


def sentence(event: Stamped) -> str:
    """Write the data of an event as a sentence."""
    data: dict[str, Any] = event.data
    match event.type:
        case "started":
            network = "{architecture} with {parameters:,} parameters on {device}".format_map(data)
            training = f"{data['train_examples']} images to train on, " if data["train_examples"] else ""
            unread = f"; {data['unread']} files of the data are not read" if data.get("unread") else ""
            return f"{network}; {training}{data['test_examples']} images to test on{unread}"
        case "warned":
            return f"{data['message']}; {data['remedy']}" if data.get("remedy") else str(data["message"])
        case "entered":
            return f"{data['phase']} {data['subject']}" if data["subject"] else str(data["phase"])
        case "monitored":
            averaged = [f"averaged: {_held_out(data['averaged'])}"] if data.get("averaged") else []
            return "; ".join([f"{data['examples']} held-out images: {_held_out(data)}", *averaged])
        case "evaluated":
            result = Result.model_validate(data["report"], extra="ignore")
            return f"{data['subject']}: {accuracies_line(result)}"
        case "job.failed":
            failure: dict[str, Any] = data["failure"]
            return f"{failure['code']}: {failure['message']}"
        case known if known in _SENTENCES:
            return _SENTENCES[known].format_map(data)
        case _:
            return ", ".join(f"{key} {value}" for key, value in data.items() if value is not None)


def _held_out(rates: dict[str, Any]) -> str:
    """Write the robustness on the held-out images in percent."""
    norms = [f"{norm} {100 * share:.1f} %" for norm, share in rates["robust"].items()]
    return ", ".join([*norms, f"union {percent(Rate.model_validate(rates['union'], extra='ignore'), unit=' %')}"])
