"""The argument parser, generated from the JSON schemas of the commands' options and specs."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from core.cli.options import COMMANDS, AnyOptions, Options, RunOptions
from core.schema.exit_status import table_lines
from core.schema.overrides import read_value
from core.schema.record import Record
from core.schema.suggestions import find_close

_SPEC = "spec."
"""Prefix of the parser's names for fields of a spec."""
_ALIASES = {"architecture": "--arch", "published": "--robustbench"}


def parse_arguments(arguments: Sequence[str] | None = None) -> AnyOptions:
    """Read a command line, by default that of this process. Exits with status 2 where it is not one."""
    parser = make_parser()
    read, unknown = parser.parse_known_args(arguments)
    given = {name: value for name, value in vars(read).items() if value is not None}
    if unknown:
        parser.error(f"there is no option {unknown[0]} here{_meant(unknown[0].partition('=')[0], given['command'])}")
    fields = {name.removeprefix(_SPEC): value for name, value in given.items() if name.startswith(_SPEC)}
    own = {name: value for name, value in given.items() if not name.startswith(_SPEC)}
    options, _ = COMMANDS[given["command"]]
    try:
        return options.model_validate({**own, "fields": fields})
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"argument {_option(str(first['loc'][0]))}: {first['msg']}")


def _meant(unknown: str, command: str) -> str:
    """Name the option that is closest to an unknown one."""
    options, spec = COMMANDS[command]
    schema = spec.model_json_schema() if spec else {"properties": {}}
    known = [
        *options.model_json_schema()["properties"],
        *(name for name, _ in _fields(schema, schema.get("$defs", {}))),
    ]
    close = find_close(unknown.lstrip("-"), known)
    return f"; did you mean {_option(close)}?" if close else f"; python -m core {command} --help lists them"


def make_parser() -> argparse.ArgumentParser:
    """Describe every command with its options and the fields of its spec."""
    parser = argparse.ArgumentParser(
        prog="python -m core",
        description="Make image classifiers robust to several norms, and prove it.",
        epilog="\n".join(["exit statuses:", *table_lines()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (options, spec) in COMMANDS.items():
        is_run = issubclass(options, RunOptions)
        text = (spec if is_run else options).__doc__
        usage = f"python -m core {name} [SPEC.json] [--FIELD VALUE ...] [--output FOLDER]" if is_run else None
        # An abbreviation could hide a misspelt option.
        command = commands.add_parser(name, help=text, description=text, usage=usage, allow_abbrev=False)
        _add_options(command, options)
        if spec:
            _add_fields(command, spec)
    return parser


def _add_options(command: argparse.ArgumentParser, options: type[Options]) -> None:
    schema = options.model_json_schema()
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        if name in ("command", "fields"):
            continue
        text = field["description"]
        if name == options.positional:
            several = field.get("type") == "array"
            command.add_argument(name, nargs="+" if several else None if name in required else "?", help=text)
        elif field.get("type") == "boolean":
            command.add_argument(_option(name), dest=name, action="store_true", help=text)
        else:
            command.add_argument(_option(name), dest=name, metavar="VALUE", help=text)


def _add_fields(command: argparse.ArgumentParser, spec: type[Record]) -> None:
    schema = spec.model_json_schema()
    for name, field in _fields(schema, schema.get("$defs", {})):
        names = [_option(name), *filter(None, [_ALIASES.get(name)])]
        command.add_argument(*names, dest=_SPEC + name, type=_reader(field), metavar=_metavar(field), help=_help(field))


def _fields(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name the fields of a spec, and with a dot those of its parts and of each norm, such as method.steps or eps.l1."""
    for name, field in schema["properties"].items():
        if name == "kind":
            continue
        yield name, field
        for kind in (field, *field.get("anyOf", ())):
            if part := parts.get(kind.get("$ref", "").rpartition("/")[2]):
                yield from ((f"{name}.{inner}", described) for inner, described in _fields(part, parts))
            for norm in kind.get("propertyNames", {}).get("enum", ()):
                yield f"{name}.{norm}", {**kind["additionalProperties"], "description": f"The same for {norm} alone."}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _reader(field: Mapping[str, Any]) -> Callable[[str], Any]:
    match field.get("type"):
        case "string":
            return str
        case "array":
            return _read_list
    return read_value


def _read_list(text: str) -> Any:
    """Read a JSON list, or words with commas between them."""
    return read_value(text) if text.startswith("[") else text.split(",")


def _metavar(field: Mapping[str, Any]) -> str:
    """Show what a value may be: the choices of an enumeration, or its type."""
    kind = field.get("anyOf", [field])[0]
    if "enum" in kind:
        return "|".join(kind["enum"])
    return {"integer": "INTEGER", "number": "NUMBER", "boolean": "true|false"}.get(kind.get("type"), "VALUE")


def _help(field: Mapping[str, Any]) -> str:
    """Give the description of a field, with its bounds and its default where these are constants."""
    bounds = next((kind for kind in field.get("anyOf", ()) if _BOUNDS.keys() & kind.keys()), field)
    notes = [f"{word} {bounds[key]:.10g}" for key, word in _BOUNDS.items() if key in bounds]
    if field.get("default") not in (None, "", {}, []):
        notes.append(f"default {str(field['default']).lower()}")
    text = " ".join(field.get("description", "").split()) + (f" ({', '.join(notes)})" if notes else "")
    return text.replace("%", "%%")


_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
