"""The reference of the two command lines: `temper` and `python -m core`."""

import argparse
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from client.cli.app import app
from core.cli.parser import make_parser
from docs.generate import markdown
from docs.generate.markdown import code


def page() -> str:
    """Describe every command with its arguments and options."""
    return markdown.page(
        "Command lines",
        "## `temper`",
        "The command of the service. Every command that asks the service accepts `--output json`.",
        *_commands("temper", get_command(app)),
        "## `python -m core`",
        "The command line of the library. `train`, `finetune` and `evaluate` also take every field of their "
        "[spec](spec.md) as an option, such as `--epochs 5`, `--eps.l1 2` or `--evaluation.protocol fast`.",
        *_core(),
    )


def _commands(name: str, command: Any) -> Iterator[str]:
    """Describe a command, or every command of a group. What typer makes has no public type."""
    inner = getattr(command, "commands", {})
    rows = [row for parameter in command.params if (row := _parameter(parameter))]
    if not inner or (rows and name != "temper"):
        yield f"### {code(name)}\n\n{command.help or ''}\n\n{markdown.table(('argument or option', 'meaning'), rows)}"
    for each, child in inner.items():
        yield from _commands(f"{name} {each}", child)


def _parameter(parameter: Any) -> tuple[str, str] | None:
    if parameter.name == "output" or parameter.hidden:
        return None
    shown = parameter.metavar or _value(parameter.type_descriptor.annotation)
    if parameter.param_type_name == "argument":
        return code(shown), parameter.help or ""
    value = "" if parameter.is_flag else f" {shown}"
    return ", ".join(code(f"{option}{value}") for option in parameter.opts), parameter.help or ""


def _value(annotation: Any) -> str:
    """Name the value of an option, such as PATH or one|two."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    inner = [each for each in get_args(annotation) if each is not type(None)]
    return _value(inner[0]) if inner else annotation.__name__.upper()


def _core() -> Iterator[str]:
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        rows = [
            (
                ", ".join(code(option) for option in action.option_strings) or code(action.dest.upper()),
                action.help or "",
            )
            for action in command._actions
            if action.help != argparse.SUPPRESS and not action.dest.startswith("spec.") and action.dest != "help"
        ]
        fields = [action for action in command._actions if action.dest.startswith("spec.")]
        if fields and name not in ("train", "finetune", "evaluate"):
            rows += [(", ".join(map(code, action.option_strings)), action.help or "") for action in fields]
        table = markdown.table(("argument or option", "meaning"), rows)
        yield f"### {code(f'python -m core {name}')}\n\n{command.description or ''}\n\n{table}"
