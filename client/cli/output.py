"""What a command prints: for people, or as JSON for programs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, TypeAdapter
from rich.console import ConsoleRenderable, RenderableType

from client import display

# A file has no width: lines there are as long as they are.
console = display.Screen(width=None if sys.stdout.isatty() else 200, highlight=False)

Output = Annotated[Literal["text", "json"], typer.Option(help="text for people, json for programs.")]


def show(answer: BaseModel | Sequence[BaseModel] | Mapping[str, Any], as_text: RenderableType, output: str) -> None:
    """Print an answer."""
    if output == "json":
        typer.echo(TypeAdapter(Any).dump_json(answer, ensure_ascii=True).decode())
    else:
        console.print(as_text, soft_wrap=not isinstance(as_text, ConsoleRenderable))
