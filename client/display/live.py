"""Live view of a job: progress bars on a terminal, lines in a file."""

from datetime import timedelta
from typing import Any, Self

from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from app.schemas.jobs import Progress, Waiting
from client.display.events import event_line, sentence
from client.temper import Temper
from core.schema.events import Stamped
from core.schema.progress import NormCount


def watch(temper: Temper, job_id: str, console: Console, *, timeout: float | None = None) -> None:
    """Show a job until it has ended. Raises StillRunning after `timeout` seconds."""
    with _Bars(console) if console.is_terminal else _Lines(console) as view:
        for item in temper.jobs.watch(job_id, timeout=timeout):
            if isinstance(item, Progress):
                view.show_progress(item)
            elif isinstance(item, Waiting):
                console.print(f"waiting: {item.message}", markup=False, soft_wrap=True)
            else:
                view.show_event(item)


class _Lines:
    """Prints a line per event, and one per tenth of the training."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show_event(self, event: Stamped) -> None:
        """Print an event."""
        self._console.print(event_line(event), soft_wrap=True)
        self._tenth = 0 if event.type == "entered" else self._tenth

    def show_progress(self, progress: Progress) -> None:
        """Print the progress when another tenth of the training is done."""
        tenth = int(10 * (progress.fraction or 0))
        if progress.subject is None and tenth > self._tenth:
            self._console.print(f"training {progress.step} of {progress.total_steps} steps, {_step_line(progress)}")
            self._tenth = tenth


class _Bars:
    """Shows a bar per phase, and the last training step below."""

    def __init__(self, console: Console) -> None:
        self._bars = bars.Progress(
            bars.SpinnerColumn(finished_text="[green]✓"),
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.TextColumn("{task.fields[done]}"),
            bars.TextColumn("[dim]{task.fields[note]}"),
            bars.TimeElapsedColumn(),
        )
        self._step = Text(style="dim")
        self._live = Live(Group(self._bars, self._step), console=console, refresh_per_second=8)
        self._begin("waiting for a worker")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show_event(self, event: Stamped) -> None:
        """Advance the bars, or start one for a new phase."""
        data: dict[str, Any] = event.data
        match event.type:
            case "entered":
                self._begin(sentence(event))
            case "attacked":
                self._move(
                    data["done"],
                    data["total"],
                    unit="attacks",
                    note=f"{data['attack']} on {data['threat']}: {data['robust']} of {data['examples']} right",
                )
            case "shard":
                self._move(data["done"], data["count"], unit="shards", note="")
            case "job.running":
                self._begin("evaluating in shards")
            case "job.gathered":
                self._begin("waiting for a worker that merges the shards")
            case "warned":
                self._live.console.print(event_line(event))
            case "job.claimed":
                self._begin("starting")
            case "job.recovered" | "job.handed_back":
                self._begin("waiting for another worker")
            case "job.pausing" | "job.stopping" | "job.cancelling":
                self._live.console.print(event_line(event))
            case "job.paused":
                self._begin("paused until it is resumed")
            case "job.resumed":
                self._begin("waiting for a worker")
            case "job.succeeded":
                self._finish()

    def show_progress(self, progress: Progress) -> None:
        """Advance the bar of the training."""
        if self._doing != "training":
            return
        left = progress.seconds_remaining
        note = f"{timedelta(seconds=round(left))} left" if left else ""
        self._move(progress.step, progress.total_steps, unit="steps", note=note)
        self._step.plain = "  " + _step_line(progress) if progress.step else ""

    def _begin(self, doing: str) -> None:
        self._finish()
        self._doing = doing
        self._task = self._bars.add_task(doing, total=None, done="", note="")
        self._unit = ""
        self._step.plain = ""

    def _move(self, done: float, total: float, *, unit: str, note: str) -> None:
        self._unit = unit
        counted = f"{done:.0f}/{total:.0f} {unit}" if unit else ""
        self._bars.update(self._task, completed=done, total=total, done=counted, note=note)

    def _finish(self) -> None:
        for task in self._bars.tasks[-1:]:
            total = task.total or 1
            note = "" if self._unit == "steps" else task.fields["note"]  # no time is left
            self._move(total, total, unit=self._unit, note=note)


def _step_line(progress: Progress) -> str:
    parts = [f"epoch {progress.epoch:.2f}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.norm:
        parts.append(f"attacked {progress.norm}")
    if progress.counts:
        errors = (f"{norm} {_error(count)}" for norm, count in progress.counts.items())
        parts.append(f"robust error {', '.join(errors)}")
    return ", ".join(parts)


def _error(count: NormCount) -> str:
    return f"{100 * (1 - count.robust / count.seen):.0f} %" if count.seen else "unknown"
