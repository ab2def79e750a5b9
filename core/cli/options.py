"""The command line's options, and the spec that they make with a spec file. No torch."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from core.schema.catalog import DATASETS, NORMS
from core.schema.errors import BadInput
from core.schema.import_spec import ImportSpec
from core.schema.method import Method
from core.schema.overrides import NotAnObject, override, read_value
from core.schema.spec import SPECS, AnySpec, Evaluation, default_eps, parse
from core.schema.strict_json import read_json
from core.schema.suggestions import did_you_mean
from core.schema.validation import field_errors

IMPORT = "import-weights"
MERGE = "merge"
INSPECT_DATASET = "inspect-dataset"
INSPECT_MODEL = "inspect-model"
_PARTS: Mapping[str, type[BaseModel]] = {"method": Method, "evaluation": Evaluation}


def make_parser() -> argparse.ArgumentParser:
    """Describe every command and option, from the fields of the specs."""
    parser = argparse.ArgumentParser(prog="python -m core", description="Make image classifiers robust, and prove it.")
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind, model in SPECS.items():
        # No abbreviations: a misspelt option must not pass for another.
        usage = f"python -m core {kind} [SPEC.json] [--FIELD VALUE ...] [--output FOLDER]"
        command = commands.add_parser(
            kind, help=model.__doc__, description=model.__doc__, usage=usage, allow_abbrev=False
        )
        command.add_argument("spec", nargs="?", type=_path, help="a JSON file with the spec")
        command.add_argument(
            "--output",
            type=_path,
            default=Path("runs") / kind,
            help=f"folder for what the run writes; by default runs/{kind} in this one",
        )
        # A run from random weights takes none, and says so where some are given.
        weights_help = argparse.SUPPRESS if kind == "train" else "the base model's file, when it is not a shipped one"
        command.add_argument("--weights", type=_path, help=weights_help)
        command.add_argument("--data", type=_path, help="the data set's folder or archive, when it is not built in")
        if kind == "evaluate":
            command.set_defaults(extra_data=None)
        else:
            command.add_argument(
                "--extra-data",
                type=_path,
                help="a second labelled set to train on: a .npz file, a folder or an archive",
            )
        command.add_argument(
            "--leave-out-unusable",
            action="store_true",
            help="leave out images that cannot be read or differ in size, in place of ending the run",
        )
        command.add_argument(
            "--workers",
            type=_count,
            help="processes that read a data set too large for memory; by default one per core",
        )
        command.add_argument("--device", help="where to compute, such as cpu or cuda:1")
        command.add_argument("--json", action="store_true", help="print events as JSON lines")
        if kind != "evaluate":
            command.add_argument(
                "--restart", action="store_true", help="begin anew where the output folder holds a run that was cut off"
            )
        command.add_argument(
            "--until-stdin-closes", action="store_true", help="end when stdin does: for a run that a program starts"
        )
        if kind == "evaluate":
            command.add_argument(
                "--shard",
                type=_read_shard,
                metavar="I/N",
                help="evaluate only the I-th of N shares of the logical batches; merge puts the reports together",
            )
        for name, help_text, read in _options(model):
            command.add_argument(
                f"--{name.replace('_', '-')}", dest=f"spec.{name}", type=read, metavar="VALUE", help=help_text
            )
    _add_merge(commands)
    _add_import(commands)
    _add_inspections(commands)
    return parser


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    help_text = "Put the reports of an evaluation's shards together, to the very report of the whole."
    command = commands.add_parser(MERGE, help=help_text, description=help_text, allow_abbrev=False)
    command.add_argument("folders", nargs="+", type=_path, help="what the shards wrote: their folders or report files")
    command.add_argument("--output", type=_path, default=Path("runs") / "merge", help="folder for the whole's report")
    command.add_argument("--json", action="store_true", help="print events as JSON lines")
    command.add_argument(
        "--until-stdin-closes", action="store_true", help="end when stdin does: where a program starts it"
    )


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(IMPORT, help=ImportSpec.__doc__, description=ImportSpec.__doc__, allow_abbrev=False)
    command.add_argument(
        "file", nargs="?", type=_path, help="the weights: a safetensors file, or a torch file of tensors"
    )
    command.add_argument(
        "--output", type=_path, help="the checkpoint to write; by default FILE's name with .safetensors"
    )
    command.add_argument("--list", action="store_true", help="list the published weights that are known by name")
    command.add_argument("--json", action="store_true", help="print a failure, or what was written, as a JSON line")
    command.set_defaults(until_stdin_closes=False)
    _add_import_fields(command)


def _add_import_fields(command: argparse.ArgumentParser) -> None:
    aliases = {"architecture": ["--arch"], "published": ["--robustbench"]}
    for name, help_text, _ in _options(ImportSpec):
        if "." not in name:
            command.add_argument(
                f"--{name}", *aliases.get(name, ()), dest=f"spec.{name}", metavar="VALUE", help=help_text
            )


def _add_inspections(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, what, help_text in (
        (INSPECT_DATASET, "an ImageFolder in a zip archive", "Say what is in a data set of a stranger, within limits."),
        (
            INSPECT_MODEL,
            "safetensors, or a torch file of tensors",
            "Make a checkpoint of a stranger's weights, within limits.",
        ),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.add_argument("file", type=_path, help=what)
        command.add_argument(
            "--output", type=_path, default=Path("runs") / name, help="folder for the report and what belongs to it"
        )
        command.add_argument("--most-bytes", type=_count, help="most bytes of the file, unpacked and decoded")
        command.add_argument("--most-seconds", type=_count, help="most time")
        command.add_argument("--most-memory", type=_count, help="most bytes of memory")
        command.add_argument("--json", action="store_true", help="print a failure, or the report, as a JSON line")
        command.add_argument(
            "--until-stdin-closes", action="store_true", help="end when stdin does: where a program starts it"
        )
        if name == INSPECT_MODEL:
            _add_import_fields(command)


def _read_shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard such as 1/4")
    return int(number), int(count)


def _options(model: type[BaseModel]) -> Iterator[tuple[str, str, Callable[[str], Any]]]:
    """Name every field of a spec, and every field of its parts, with its help and how to read it."""
    described = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        if name in ("kind", "webhook"):
            continue
        text = " ".join(described[name]["description"].split()).replace("%", "%%")
        yield name, text, _reader(field.annotation)
        if name == "eps":
            yield from (
                (f"eps.{norm}", f"The radius for {norm}; other norms keep theirs.", read_value) for norm in NORMS
            )
        if part := _PARTS.get(name):
            yield from ((f"{name}.{inner}", text, read) for inner, text, read in _options(part))


def _reader(annotation: Any) -> Callable[[str], Any]:
    if annotation is str:
        return str
    return _read_list if get_origin(annotation) in (tuple, list) else read_value


def _read_list(text: str) -> Any:
    """Read a JSON list, or words with commas between them."""
    return read_value(text) if text.startswith("[") else text.split(",")


def _path(text: str) -> Path:
    """Read a path; an empty one would mean the folder that the command happens to run in."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: name a file or folder, or leave the option out")
    return Path(text)


def _count(text: str) -> int:
    """Read a whole number that may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def read_spec(options: argparse.Namespace) -> AnySpec:
    """Put the spec together from file and options. Raises BadInput."""
    body = _file(options.spec) if options.spec else {}
    body.setdefault("kind", options.kind)
    if body["kind"] != options.kind:
        raise BadInput(
            f"{options.spec} is a spec of kind {body['kind']!r}",
            hint=f"run: python -m core {body['kind']}",
            field="kind",
        )
    if body.get("webhook") is not None:
        raise BadInput(
            "a run on the command line has nobody to call",
            hint="leave webhook out, or post the spec to the service",
            field="webhook",
        )
    if options.kind != "evaluate" and "WORLD_SIZE" in os.environ:
        body.setdefault("gpus", _processes(os.environ["WORLD_SIZE"]))
    if options.weights and options.kind != "train":
        body.setdefault("base_model", _name_after(options.weights.stem, "--base-model"))
    # In the order of the fields: what names the data set comes before eps.
    for name, value in vars(options).items():
        if name.startswith("spec.") and value is not None:
            path = name.removeprefix("spec.").split(".")
            if path[0] == "eps" and len(path) > 1 and "eps" not in body:
                # One radius by its own option varies that one; the other norms are still evaluated.
                body["eps"] = default_eps(body.get("base_model"), body.get("dataset"))
            try:
                override(body, name.removeprefix("spec."), value)
            except NotAnObject as error:
                hint = f"give {error.field} as an object, or leave --{name.removeprefix('spec.')} out"
                raise BadInput(str(error), hint=hint, field=error.field) from error
    if options.extra_data and not body.get("extra_dataset"):
        body["extra_dataset"] = _name_after(options.extra_data.name.partition(".")[0], "--extra-dataset")
    dataset = body.get("dataset")
    if isinstance(dataset, str) and dataset not in DATASETS and not options.data:
        raise BadInput(
            f"Temper has no data set {dataset!r} of its own; {did_you_mean(dataset, DATASETS)}",
            hint="name one of these, or say with --data where the images are",
            field="dataset",
        )
    if options.data and "dataset" not in body:
        raise BadInput(
            f"{options.data} is given, but not which data set it holds",
            hint="add --dataset: cifar10, cifar100, imagenet, or any name for images of your own",
            field="dataset",
        )
    with _said_field_by_field(options.kind):
        return parse(body)


def read_import(options: argparse.Namespace) -> ImportSpec:
    """Put together what is to be imported. Raises BadInput."""
    given = {name.removeprefix("spec."): value for name, value in vars(options).items() if name.startswith("spec.")}
    if isinstance(given["classes"], str):
        given["classes"] = read_value(given["classes"])
    with _said_field_by_field(IMPORT):
        return ImportSpec.model_validate({name: value for name, value in given.items() if value is not None})


@contextmanager
def _said_field_by_field(kind: str) -> Iterator[None]:
    """Turn what validation finds into one BadInput."""
    try:
        yield
    except ValidationError as error:
        problems = {problem.pointer.lstrip("/").replace("/", "."): problem.detail for problem in field_errors(error)}
        field, first = next(iter(problems.items()))
        alone = len(problems) == 1
        raise BadInput(
            first if alone else "; ".join(f"{name}: {detail}" for name, detail in problems.items()),
            hint=f"see python -m core {kind} --help",
            field=field if alone else None,
        ) from error


def _processes(text: str) -> int:
    """Read how many processes torchrun says that it has started."""
    if not text.isdecimal():
        raise BadInput(
            f"the environment variable WORLD_SIZE is {text!r}, which is no number of processes",
            hint="unset it, or start the run with torchrun, which sets it",
            field="gpus",
        )
    return int(text)


def _name_after(word: str, option: str) -> str:
    """Make a name for a spec of a file's, in the characters that names have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", word, flags=re.ASCII).lstrip("._-")[:128]
    if not name:
        raise BadInput(
            f"no name can be made of {word!r}",
            hint=f"give one of letters and digits with {option}",
            field=option.removeprefix("--").replace("-", "_"),
        )
    return name


def _file(path: Path) -> dict[str, Any]:
    try:
        body = read_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", hint="check the path", field="spec") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON as it should be: {error}", hint="correct the file", field="spec") from error
    if not isinstance(body, dict):
        raise BadInput(f"{path} is not a JSON object", hint='write a spec such as {"base_model": ...}', field="spec")
    return body
