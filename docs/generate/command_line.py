"""The reference of the two command lines: `temper` and `python -m core`."""

import argparse
from collections.abc import Iterator

import click
from typer.main import get_command

from client.cli import app
from core.cli.options import make_parser
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
        "The command line of the library. `train`, `finetune` and `evaluate` also take every field of their [spec](spec.md) as an option, "
        "such as `--epochs 5`, `--eps.l1 2` or `--evaluation.protocol fast`.",
        *_core(),
    )


def _commands(name: str, command: click.Command) -> Iterator[str]:
    """Describe a command and all that are in it."""
    inner = getattr(command, "commands", None)
    if inner is None or command.params:
        rows = [row for parameter in command.params if (row := _parameter(parameter))]
        title = f"### {code(name)}"
        if name != "temper":
            yield f"{title}\n\n{command.help or ''}\n\n{markdown.table(('argument or option', 'meaning'), rows)}"
    for each, child in (inner or {}).items():
        yield from _commands(f"{name} {each}", child)


def _parameter(parameter: click.Parameter) -> tuple[str, str] | None:
    meaning = getattr(parameter, "help", None) or ""
    if parameter.name == "output" or getattr(parameter, "hidden", False):
        return None
    if parameter.param_type_name == "argument":
        return code(parameter.metavar or parameter.human_readable_name.upper()), meaning
    flag = getattr(parameter, "is_flag", False)
    value = "" if flag else f" {parameter.metavar or parameter.type.name.upper()}"
    return ", ".join(code(f"{option}{value}") for option in parameter.opts), meaning


def _core() -> Iterator[str]:
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        rows = [
            (", ".join(code(option) for option in action.option_strings) or code(action.dest.upper()), action.help or "")
            for action in command._actions
            if action.help != argparse.SUPPRESS and not action.dest.startswith("spec.") and action.dest != "help"
        ]
        fields = [action for action in command._actions if action.dest.startswith("spec.")]
        if fields and name not in ("train", "finetune", "evaluate"):
            rows += [(", ".join(map(code, action.option_strings)), action.help or "") for action in fields]
        description = command.description or ""
        yield f"### {code(f'python -m core {name}')}\n\n{description}\n\n{markdown.table(('argument or option', 'meaning'), rows)}"
