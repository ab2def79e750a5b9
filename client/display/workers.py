"""Workers."""

from collections import Counter
from collections.abc import Iterable

from rich.console import RenderableType
from rich.markup import escape

from app.schemas.workers import Device, Work, Worker
from client.display.screen import table_of


def workers_table(workers: Iterable[Worker]) -> RenderableType:
    """Show workers, one per line."""
    table = table_of("name", "status", "class", "slots", "GPUs", "can do", "works on", "started", "heard of")
    for worker in workers:
        table.add_row(
            escape(worker.name),
            worker.status,
            worker.resource_class,
            str(worker.slots),
            escape(", ".join(_devices(worker.devices))),
            escape(" ".join(worker.capabilities)),
            escape(", ".join(map(_work, worker.work))),
            f"{worker.started_at.astimezone():%Y-%m-%d %H:%M}",
            f"{worker.heartbeat_at.astimezone():%Y-%m-%d %H:%M:%S}",
        )
    return table


def _devices(devices: Iterable[Device]) -> Iterable[str]:
    for device, count in Counter(devices).items():
        memory = f" ({device.memory / 1e9:.0f} GB)" if device.memory else ""
        yield f"{count} x {device.name}{memory}"


def _work(work: Work) -> str:
    return work.id if work.kind == "job" else f"{work.kind} {work.id}"
