"""Console and tables on which no text of the service can control the terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from core.schema.exit_status import ExitStatus

STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}

# All control characters of C0 and C1 except newline and tab.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class Screen(Console):
    """A console that escapes control characters, so that no text can control the terminal, and removes blanks at the
    ends of the lines of tables."""

    def on_broken_pipe(self) -> None:
        """End the command with the status of one whose output nothing reads; rich would end it with 1."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(ExitStatus.BROKEN_PIPE) from None

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a Text of a string, escaped before its width is measured."""
        return super().render_str(text.translate(_ESCAPES), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Make segments of a renderable; the control segments of rich itself stay as they are."""
        segments: Iterable[Segment] = super().render(renderable, options)
        for segment in _trimmed(segments) if isinstance(renderable, Table) else segments:
            yield segment if segment.control else segment._replace(text=segment.text.translate(_ESCAPES))


def table_of(*columns: str, right: bool = False) -> Table:
    """Make a table without lines; with `right`, all columns but the first are aligned to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if right and number else "left", overflow="fold")
    return table


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar of the bytes done on a terminal, and nothing elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    screen = Screen(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield advance


def duration(seconds: float) -> str:
    """Write a duration, rounded to seconds or minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _trimmed(segments: Iterable[Segment]) -> Iterator[Segment]:
    for line in Segment.split_lines(segments):
        while line and not line[-1].text.strip():
            line.pop()
        yield from line[:-1]
        yield from (last._replace(text=last.text.rstrip()) for last in line[-1:])
        yield Segment.line()
