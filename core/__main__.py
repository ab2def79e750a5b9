"""The command line of the library: python -m core train|finetune|evaluate|merge|import-weights.

    python -m core finetune examples/digits.json --epochs 5 --eps.l1 2 --output runs/digits
    python -m core evaluate --base-model digits-cnn-linf --evaluation.protocol standard --output runs/base
    python -m core evaluate examples/digits-evaluate.json --shard 1/2 --output runs/1   (and 2/2, anywhere, any time)
    python -m core merge runs/1 runs/2 --output runs/whole
    python -m core import-weights carmon.pt --published Carmon2019Unlabeled --output models/carmon.safetensors

The options are the fields of the spec, with their help; the spec file gives what they do not. Each event is a line on
stdout, as text or as JSON. Exit status: 0 done, 2 the input is at fault, 1 the program is, 75 asked to pause.

A training run that was cut off goes on when the same command is run again. SIGTERM pauses it, SIGUSR1 makes it deliver
the best weights so far. On several GPUs: torchrun --standalone --nproc-per-node 4 -m core finetune ...
"""

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ValidationError

from core.advice import cautions, explain
from core.catalog import NORMS
from core.errors import BadInput, UserError
from core.events import PAUSED, Event, Failed, Finished, Paused, Reports, Warned
from core.narration import narrate
from core.published import PUBLISHED
from core.spec import SPECS, AnySpec, EvaluateSpec, Evaluation, ImportSpec, Method, parse
from core.wishes import Interrupted, Wishes, heed_signals

_PARTS: Mapping[str, type[BaseModel]] = {"method": Method, "evaluation": Evaluation}

_IMPORT = "import-weights"
_MERGE = "merge"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    # Of several processes the first one speaks; what goes wrong in another is for its log.
    stream = sys.stdout if os.environ.get("RANK", "0") == "0" else sys.stderr
    say = partial(_say_json if options.json else _say_text, file=stream)
    wishes = Wishes()
    if options.until_stdin_closes:
        threading.Thread(target=_exit_with_stdin, daemon=True).start()
    # A library that prints must not get between the events.
    with redirect_stdout(sys.stderr), heed_signals(wishes):
        try:
            if options.kind == _IMPORT:
                for line in _import(options):
                    print(line, file=say.keywords["file"], flush=True)
                return 0
            last = None
            for last in _merge(options) if options.kind == _MERGE else _begin(options, wishes):
                say(last)
        except UserError as error:
            say(_failed(error))
            return 2
        except KeyboardInterrupt:
            return 130
        except Interrupted:
            return PAUSED
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            say(Failed(code="internal_error", message=message, hint="please report this with the log"))
            return 1
    return PAUSED if isinstance(last, Paused) else 0


def _failed(error: UserError) -> Failed:
    return Failed(code=error.code, message=error.message, hint=error.hint, field=error.field, retryable=error.retryable)


def _begin(options: argparse.Namespace, wishes: Wishes) -> Iterator[Event]:
    spec = _spec(options)
    for caution in () if options.json else cautions(spec):
        yield Warned(code=caution.code, message=caution.message)
    yield from _run(spec, options, wishes)


def _run(spec: AnySpec, options: argparse.Namespace, wishes: Wishes) -> Iterator[Event]:
    # Threads of GNU OpenMP spin while they wait, by default so long that on a machine with other work to do half the
    # time is lost (measured on 2 cores, digits: 45 s against 22 s); spinning briefly costs a tenth on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # torch takes seconds to load: not for --help, and not for a spec that is refused.
    import torch

    from core.evaluation import score
    from core.inputs import Inputs
    from core.training import fine_tune

    try:
        device = torch.empty(0, device=options.device).device if options.device else None
    except (RuntimeError, AssertionError) as error:
        raise BadInput(
            f"cannot compute on {options.device!r}: {error}", hint="name a device such as cpu or cuda:0", field="device"
        ) from error
    inputs = Inputs(
        weights=options.weights,
        data=options.data,
        extra_data=options.extra_data,
        workers=options.workers,
        device=device,
    )
    if isinstance(spec, EvaluateSpec):
        return score(spec, options.output, inputs, shard=options.shard)
    return fine_tune(spec, options.output, inputs, wishes=wishes, restart=options.restart)


def _merge(options: argparse.Namespace) -> Iterator[Event]:
    """Put the reports of shards together."""
    from core.checkpoint import make_folder
    from core.evaluation import save_reports
    from core.verdicts import merge

    merged = merge([_report(folder) for folder in options.folders])
    assert merged.after
    make_folder(options.output)
    yield save_reports(merged, merged.run, options.output, step=0, epoch=0)
    yield Finished(reports=merged, seconds=merged.after.seconds)


def _report(folder: Path) -> Reports:
    path = folder / "report.json" if folder.is_dir() else folder
    try:
        return Reports.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"cannot read {path}: {error.strerror}",
            hint="name the output folders of: python -m core evaluate ... --shard I/N",
            field="merge",
        ) from error
    except ValidationError as error:
        raise BadInput(
            f"{path} is not a report of this version of Temper", hint="evaluate that shard again", field="merge"
        ) from error


def _say_json(event: Event, file: TextIO) -> None:
    print(event.model_dump_json(), file=file, flush=True)


def _say_text(event: Event, file: TextIO) -> None:
    for line in narrate(event):
        print(line, file=file, flush=True)


def _exit_with_stdin() -> None:
    """End the process when whoever started it is gone, however they went."""
    # Not through sys.stdin: a thread that waits in its buffer makes Python abort at the end of a good run.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(143)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core", description="Make image classifiers robust, and prove it.")
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind, model in SPECS.items():
        # No abbreviations: a misspelt option must not pass for another.
        usage = f"python -m core {kind} [SPEC.json] [--FIELD VALUE ...] [--output FOLDER]"
        command = commands.add_parser(
            kind, help=model.__doc__, description=model.__doc__, usage=usage, allow_abbrev=False
        )
        command.add_argument("spec", nargs="?", type=Path, help="a JSON file with the spec")
        command.add_argument(
            "--output",
            type=Path,
            default=Path("runs") / kind,
            help=f"folder for what the run writes; by default runs/{kind} in this one",
        )
        command.add_argument("--weights", type=Path, help="the base model's file, when it is not a shipped one")
        command.add_argument("--data", type=Path, help="the data set's folder or archive, when it is not built in")
        if kind == "evaluate":
            command.set_defaults(extra_data=None)
        else:
            command.add_argument(
                "--extra-data", type=Path, help="a second labelled set to train on: a .npz file, a folder or an archive"
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
    return parser


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    help_text = "Put the reports of an evaluation's shards together, to the very report of the whole."
    command = commands.add_parser(_MERGE, help=help_text, description=help_text, allow_abbrev=False)
    command.add_argument("folders", nargs="+", type=Path, help="what the shards wrote: their folders or report files")
    command.add_argument("--output", type=Path, default=Path("runs") / "merge", help="folder for the whole's report")
    command.add_argument("--json", action="store_true", help="print events as JSON lines")
    command.set_defaults(until_stdin_closes=False)


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(_IMPORT, help=ImportSpec.__doc__, description=ImportSpec.__doc__, allow_abbrev=False)
    command.add_argument(
        "file", nargs="?", type=Path, help="the weights: a safetensors file, or a torch file of tensors"
    )
    command.add_argument(
        "--output", type=Path, help="the checkpoint to write; by default FILE's name with .safetensors"
    )
    command.add_argument("--list", action="store_true", help="list the published weights that are known by name")
    command.add_argument("--json", action="store_true", help="print a failure, or what was written, as a JSON line")
    command.set_defaults(until_stdin_closes=False)
    aliases = {"architecture": ["--arch"], "published": ["--robustbench"]}
    for name, help_text, _ in _options(ImportSpec):
        if "." not in name:
            command.add_argument(
                f"--{name}", *aliases.get(name, ()), dest=f"spec.{name}", metavar="VALUE", help=help_text
            )


def _import(options: argparse.Namespace) -> Iterator[str]:
    """Import weights, or list those that are known, and say in lines what was done."""
    if options.list:
        for entry in PUBLISHED.values():
            yield f"{entry.name}: {entry.description}"
            yield f"  {entry.architecture}, {entry.norm} {entry.eps:.4g}, licence {entry.licence or 'not stated'}"
            yield f"  {entry.source}"
        return
    if options.file is None:
        raise BadInput(
            "the file is missing", hint="python -m core import-weights FILE --architecture NAME", field="file"
        )
    given = {name.removeprefix("spec."): value for name, value in vars(options).items() if name.startswith("spec.")}
    if isinstance(given["classes"], str):
        given["classes"] = _read(given["classes"])
    with _said_field_by_field(_IMPORT):
        spec = ImportSpec.model_validate({name: value for name, value in given.items() if value is not None})
    from core.conversion import import_weights

    done = import_weights(options.file, spec, options.output or Path(f"{options.file.stem}.safetensors"))
    if options.json:
        yield json.dumps({"path": str(done.path), "sha256": done.sha256, "header": done.header.model_dump(mode="json")})
        return
    blueprint = done.header.blueprint
    source = f"{options.file}, {done.key}" if done.key else options.file
    yield f"read {source}: {blueprint.architecture}, {done.parameters:,} parameters"
    yield f"  images {' x '.join(map(str, blueprint.shape))}, {blueprint.classes} classes"
    yield (
        f"  normalised by mean {list(blueprint.mean)}, std {list(blueprint.std)}"
        if blueprint.mean
        else ("  not normalised: the network takes images in [0, 1] as they are")
    )
    if left_out := done.header.origin and done.header.origin.left_out:
        yield f"  left out {len(left_out)} that the network does not run, such as {left_out[0]}"
    yield f"wrote {done.path} ({done.path.stat().st_size:,} bytes, sha256 {done.sha256})"
    yield f"  use it with --weights {done.path}, or put it into a service's models folder"


def _read_shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard such as 1/4")
    return int(number), int(count)


def _options(model: type[BaseModel]) -> Iterator[tuple[str, str, Callable[[str], Any]]]:
    """Name every field of a spec, and every field of its parts, with its help and how to read it."""
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        text = " ".join((field.description or "").split()).replace("%", "%%")
        yield name, text, str if field.annotation is str else _read
        if name == "eps":
            yield from ((f"eps.{norm}", f"The radius for {norm}.", _read) for norm in NORMS)
        if part := _PARTS.get(name):
            yield from ((f"{name}.{inner}", text, read) for inner, text, read in _options(part))


def _read(text: str) -> Any:
    """Read a value as JSON where it is, else as the word it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _count(text: str) -> int:
    """Read a whole number that may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def _spec(options: argparse.Namespace) -> AnySpec:
    """Put the spec together from file and options. Raises BadInput."""
    body = _file(options.spec) if options.spec else {}
    body.setdefault("kind", options.kind)
    if body["kind"] != options.kind:
        raise BadInput(
            f"{options.spec} is a spec of kind {body['kind']!r}",
            hint=f"run: python -m core {body['kind']}",
            field="kind",
        )
    if options.kind != "evaluate" and "WORLD_SIZE" in os.environ:
        body.setdefault("gpus", int(os.environ["WORLD_SIZE"]))
    if options.weights and options.kind != "train":
        body.setdefault("base_model", options.weights.stem)
    for name, value in vars(options).items():
        if name.startswith("spec.") and value is not None:
            _set(body, name.removeprefix("spec.").split("."), value)
    if options.extra_data and not body.get("extra_dataset"):
        body["extra_dataset"] = options.extra_data.name.partition(".")[0]
    if options.data and "dataset" not in body:
        raise BadInput(
            f"{options.data} is given, but not which data set it holds",
            hint="add --dataset: cifar10, cifar100, imagenet, or any name for images of your own",
            field="dataset",
        )
    with _said_field_by_field(options.kind):
        return parse(body)


@contextmanager
def _said_field_by_field(kind: str) -> Iterator[None]:
    """Turn what validation finds into one BadInput."""
    try:
        yield
    except ValidationError as error:
        problems = {problem.pointer.lstrip("/").replace("/", "."): problem.detail for problem in explain(error)}
        field, first = next(iter(problems.items()))
        alone = len(problems) == 1
        raise BadInput(
            first if alone else "; ".join(f"{name}: {detail}" for name, detail in problems.items()),
            hint=f"see python -m core {kind} --help",
            field=field if alone else None,
        ) from error


def _set(body: dict[str, Any], path: list[str], value: Any) -> None:
    *outer, last = path
    for name in outer:
        inside = body.get(name, {})
        body[name] = inside = {"name": inside} if isinstance(inside, str) else dict(inside)
        body = inside
    body[last] = value


def _file(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", hint="check the path", field="spec") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}", hint="correct the file", field="spec") from error
    if not isinstance(body, dict):
        raise BadInput(f"{path} is not a JSON object", hint='write a spec such as {"base_model": ...}', field="spec")
    return body


if __name__ == "__main__":
    sys.exit(main())
