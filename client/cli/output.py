"""Output of the commands: text for people, or JSON for programs."""

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from client.display.screen import Screen
    from client.temper import Temper

Shown = TypeVar("Shown")

Timeout = Annotated[
    float | None, typer.Option(min=0, help="Give up after this number of seconds, with exit status 4; the job goes on.")
]
Output = Annotated[Literal["text", "json"], typer.Option(help="text for people, json for programs.")]


def connect() -> "Temper":
    """Connect to the service, and say on standard error when it is away. Raises NoKey, BadAddress."""
    from client.temper import Temper

    return Temper(tell=_warn)


def _warn(line: str) -> None:
    # Not typer.echo, which would write through the bars of a live view.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@cache
def console() -> "Screen":
    """Return the console for standard output. Lines to a file are not wrapped at the width of a terminal."""
    from client.display.screen import Screen

    return Screen(width=None if sys.stdout.isatty() else 200, highlight=False)


def show(answer: Shown, as_text: "Callable[[Shown], RenderableType]", output: str) -> None:
    """Print an answer."""
    if output == "json":
        from pydantic import TypeAdapter

        typer.echo(TypeAdapter(Any).dump_json(answer, ensure_ascii=True).decode())
        return
    from rich.console import ConsoleRenderable

    text = as_text(answer)
    console().print(text, soft_wrap=not isinstance(text, ConsoleRenderable))
