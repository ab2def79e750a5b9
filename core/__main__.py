"""The command line of the library: python -m core train|finetune|evaluate|merge|import-weights|inspect-....

    python -m core finetune examples/digits.json --epochs 5 --eps.l1 2 --output runs/digits
    python -m core evaluate --base-model digits-cnn-linf --evaluation.protocol standard --output runs/base
    python -m core evaluate examples/digits-evaluate.json --shard 1/2 --output runs/1   (and 2/2, anywhere, any time)
    python -m core merge runs/1 runs/2 --output runs/whole
    python -m core import-weights carmon.pt --published Carmon2019Unlabeled --output models/carmon.safetensors
    python -m core inspect-dataset pets.zip --output runs/pets   (and inspect-model weights.pt: files of strangers)

The options are the fields of the spec, with their help; the spec file gives what they do not. Each event is a line on
stdout, as text or as JSON. Exit status: 0 done, 2 the input is at fault, 1 the program is, 75 asked to pause. Of
several processes the status is torchrun's: 0 done, else 1, after a pause too.

A training run that was cut off goes on when the same command is run again. SIGTERM pauses it, SIGUSR1 makes it deliver
the best weights so far. On several GPUs: torchrun --standalone --nproc-per-node 4 -m core finetune ...
"""

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import ValidationError

from core.cli.console import describe, narrate
from core.cli.options import IMPORT, INSPECT_DATASET, INSPECT_MODEL, MERGE, make_parser, read_import, read_spec
from core.schema.errors import BadInput, UserError
from core.schema.events import PAUSED, Entered, Evaluated, Event, Failed, Finished, Paused, Reports, Warned
from core.schema.inspection_report import DatasetInspection, ModelInspection
from core.schema.model_zoo import PUBLISHED
from core.schema.spec import AnySpec, EvaluateSpec
from core.schema.spec_warnings import spec_warnings
from core.signals import Interrupted, StopRequests, handle_signals

if TYPE_CHECKING:
    import torch


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = make_parser().parse_args(arguments)
    # Of several processes the first one speaks; what goes wrong in another is for its log.
    speaks = os.environ.get("RANK", "0") == "0"
    say = partial(_say_json if options.json else _say_text, file=sys.stdout if speaks else sys.stderr)
    requests = StopRequests()
    if options.until_stdin_closes:
        threading.Thread(target=_exit_with_stdin, daemon=True).start()
    # A library that prints must not get between the events.
    with redirect_stdout(sys.stderr), handle_signals(requests):
        try:
            if options.kind in (IMPORT, INSPECT_DATASET, INSPECT_MODEL):
                for line in _import(options) if options.kind == IMPORT else _inspect(options):
                    print(line, file=say.keywords["file"], flush=True)
                return 0
            last = None
            for last in _merge(options) if options.kind == MERGE else _begin(options, requests):
                if speaks:
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


def _begin(options: argparse.Namespace, requests: StopRequests) -> Iterator[Event]:
    spec = read_spec(options)
    for caution in () if options.json else spec_warnings(spec):
        yield Warned(code=caution.code, message=caution.message)
    yield from _run(spec, options, requests)


def _run(spec: AnySpec, options: argparse.Namespace, requests: StopRequests) -> Iterator[Event]:
    # Threads of GNU OpenMP spin while they wait, by default so long that on a machine with other work to do half the
    # time is lost (measured on 2 cores, digits: 45 s against 22 s); spinning briefly costs a tenth on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # torch takes seconds to load: not for --help, and not for a spec that is refused.
    from core.evaluation.autoattack import run_evaluation
    from core.inputs import Inputs
    from core.training.run import fine_tune

    inputs = Inputs(
        weights=options.weights,
        data=options.data,
        extra_data=options.extra_data,
        workers=options.workers,
        leave_out_unusable=options.leave_out_unusable,
        device=None if options.device is None else _find_device(options.device),
    )
    if isinstance(spec, EvaluateSpec):
        return run_evaluation(spec, options.output, inputs, shard=options.shard)
    return fine_tune(spec, options.output, inputs, requests=requests, restart=options.restart)


def _find_device(name: str) -> "torch.device":
    import torch

    try:
        one = torch.ones(1, device=name)
        # A meta device holds tensors and no numbers.
        one.item()
    except (RuntimeError, AssertionError, ImportError) as error:
        # Where torch has no kernels for a device, it lists those that it has.
        reason = "torch has nothing for it here" if isinstance(error, NotImplementedError) else str(error)
        raise BadInput(
            f"cannot compute on {name!r}: {reason.partition(chr(10))[0]}",
            hint="name a device such as cpu or cuda:0",
            field="device",
        ) from error
    return one.device


def _merge(options: argparse.Namespace) -> Iterator[Event]:
    """Put the reports of shards together."""
    reports = [_report(folder) for folder in options.folders]
    from core.checkpoint import make_folder
    from core.evaluation.autoattack import save_reports
    from core.evaluation.report import merge

    merged = merge(reports)
    assert merged.after
    make_folder(options.output)
    yield Evaluated(subject="result", report=merged.after)
    yield Entered(phase="publishing")
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
    wanted = read_import(options)
    if not options.file.is_file():
        what = "is a folder, not a file" if options.file.is_dir() else "is not there"
        raise BadInput(f"{options.file} {what}", hint="give the path of the weights' file", field="file")
    from core.intake.import_weights import import_weights

    done = import_weights(options.file, wanted, options.output or Path(f"{options.file.stem}.safetensors"))
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


def _inspect(options: argparse.Namespace) -> Iterator[str]:
    """Inspect a stranger's file under limits, and say in lines what was found."""
    from core.data.safe_zip import Caps
    from core.intake.inspect import inspect_dataset, inspect_model
    from core.sandbox import Limits, deny_network, sandboxed

    limits = _given(Limits(), seconds=options.most_seconds, memory_bytes=options.most_memory)
    caps = _given(Caps(), total_bytes=options.most_bytes)
    if complaint := deny_network():
        warning = Warned(code="not_cut_off", message=f"this process can reach the network: {complaint}")
        yield from [warning.model_dump_json()] if options.json else narrate(warning)
    found: DatasetInspection | ModelInspection
    with sandboxed(limits):
        if options.kind == INSPECT_DATASET:
            found = inspect_dataset(options.file, options.output, caps=caps)
        else:
            found = inspect_model(options.file, read_import(options), options.output, max_bytes=caps.total_bytes)
    if options.json:
        yield found.model_dump_json()
        return
    yield from describe(found)
    yield f"wrote {options.output / 'report.json'}"


def _given(limits: Any, **values: int | None) -> Any:
    """Put in what was said on the command line."""
    return replace(limits, **{name: value for name, value in values.items() if value is not None})


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Python would take all of torch apart before it ends, for which nobody should have to wait a second or two; and of
    # several processes one would now and then be aborted at that by a thread of torch's, and torchrun end the others.
    os._exit(status)
