"""The commands. Each yields the events of a run, or lines of text for a command that is not a run.

What needs torch is imported inside them: loading it takes seconds, too long for --help or for a spec that is refused.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from pydantic import ValidationError

from core.cli.console import inspection_lines, other_weights_lines
from core.cli.options import (
    AnyOptions,
    DownloadOptions,
    EvaluationOptions,
    ImportOptions,
    InspectDatasetOptions,
    InspectOptions,
    MergeOptions,
    RunOptions,
    TrainingOptions,
)
from core.cli.specs import read_dataset_spec, read_import, read_spec
from core.schema.errors import BadInput
from core.schema.events import Entered, Evaluated, Event, Failed, Finished, Warned
from core.schema.inspection_report import DatasetInspection, ModelInspection
from core.schema.model_zoo import PUBLISHED, REFUSED
from core.schema.report import Reports
from core.schema.spec import EvaluateSpec
from core.schema.spec_warnings import spec_warnings
from core.signals import StopRequests

if TYPE_CHECKING:
    import torch


def run_command(options: AnyOptions, requests: StopRequests) -> Iterator[Event | str]:
    """Carry out one command. Raises UserError."""
    match options:
        case RunOptions():
            return _run(options, requests)
        case MergeOptions():
            return _merge(options)
        case DownloadOptions():
            return _download(options)
        case ImportOptions():
            return _list_published() if options.list_published else _import(options)
        case InspectOptions():
            return _inspect(options)
        case _:
            assert_never(options)


def _run(options: RunOptions, requests: StopRequests) -> Iterator[Event]:
    spec = read_spec(options)
    for warning in () if options.json_lines else spec_warnings(spec):
        yield Warned(**warning.model_dump())
    # Threads of GNU OpenMP spin while they wait, by default so long that on a machine with other work to do half the
    # time is lost (measured on 2 cores, digits: 45 s against 22 s); spinning briefly costs a tenth on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from core.evaluation.autoattack import run_evaluation
    from core.inputs import Inputs
    from core.models.own import import_factory, make
    from core.training.run import fine_tune

    inputs = Inputs(
        weights=options.weights,
        model=make(import_factory(options.model), options.model, seed=spec.seed) if options.model else None,
        data=options.data,
        extra_data=options.extra_data if isinstance(options, TrainingOptions) else None,
        corruptions=options.corruptions,
        workers=options.workers,
        leave_out_unusable=options.leave_out_unusable,
        device=None if options.device is None else _find_device(options.device),
    )
    if isinstance(spec, EvaluateSpec):
        assert isinstance(options, EvaluationOptions)
        yield from run_evaluation(spec, options.output, inputs, shard=options.shard)
    else:
        assert isinstance(options, TrainingOptions)
        yield from fine_tune(spec, options.output, inputs, requests=requests, restart=options.restart)


def _find_device(name: str) -> "torch.device":
    import torch

    try:
        one = torch.ones(1, device=name)
        # Fails on a meta device, whose tensors have no values.
        one.item()
    except (RuntimeError, AssertionError, ImportError) as error:
        # Where torch has no kernels for a device, it lists the devices for which it has.
        reason = "torch has nothing for it here" if isinstance(error, NotImplementedError) else str(error)
        raise BadInput(
            f"cannot compute on {name!r}: {reason.partition(chr(10))[0]}",
            hint="name a device such as cpu or cuda:0",
            field="device",
        ) from error
    return one.device


def _merge(options: MergeOptions) -> Iterator[Event]:
    reports = [_read_report(folder) for folder in options.folders]
    from core.checkpoint import make_folder
    from core.evaluation.autoattack import save_reports
    from core.evaluation.report import merge

    merged = merge(reports)
    assert merged.after
    make_folder(options.output)
    yield from (Warned(**warning.model_dump()) for warning in merged.warnings)
    yield Evaluated(subject="result", report=merged.after)
    yield Entered(phase="publishing")
    yield save_reports(merged, merged.run, options.output, step=0, epoch=0)
    yield Finished(reports=merged, seconds=merged.after.seconds)


def _read_report(folder: Path) -> Reports:
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


def _download(options: DownloadOptions) -> Iterator[str]:
    from core.data import cifar

    yield f"{options.dataset} is in {cifar.download(options.dataset)}"


def _list_published() -> Iterator[str]:
    for entry in PUBLISHED.values():
        yield f"{entry.name}: {entry.description}"
        robust_to = f"{entry.norm} {entry.eps:.4g}" if entry.norm and entry.eps else "not robust"
        images = f", images {entry.preprocessing}" if entry.preprocessing else ""
        yield f"  {entry.architecture}, {robust_to}{images}, licence {entry.licence or 'not stated'}"
        yield f"  {entry.source}"
    for refused in REFUSED.values():
        yield f"{refused.name}: {refused.description}"
        yield f"  not supported: {refused.reason}"


def _import(options: ImportOptions) -> Iterator[str]:
    if options.file is None:
        raise BadInput(
            "the file is missing", hint="python -m core import-weights FILE --architecture NAME", field="file"
        )
    spec = read_import(options)
    if not options.file.is_file():
        what = "is a folder, not a file" if options.file.is_dir() else "does not exist"
        raise BadInput(f"{options.file} {what}", hint="give the path of the weights' file", field="file")
    from core.intake.import_weights import import_weights

    done = import_weights(options.file, spec, options.output or Path(f"{options.file.stem}.safetensors"))
    if options.json_lines:
        shown = {"path": str(done.path), "sha256": done.sha256, "header": done.header.model_dump(mode="json")}
        yield json.dumps({**shown, "key": done.key, "other_keys": done.others})
        return
    yield from other_weights_lines(done.key, done.others)
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


def _inspect(options: InspectOptions) -> Iterator[Event | str]:
    from core.data.safe_zip import Caps
    from core.intake.inspect import inspect_dataset, inspect_model
    from core.sandbox import Limits, deny_network, sandboxed

    limits = _replace_given(Limits(), seconds=options.most_seconds, memory_bytes=options.most_memory)
    caps = _replace_given(Caps(), total_bytes=options.most_bytes)
    if reason := deny_network():
        yield Warned(code="not_cut_off", message=f"this process can reach the network: {reason}")
    # Built before the limits hold: pydantic's core aborts the process when it lacks the memory to build a validator.
    for record in (Failed, DatasetInspection, ModelInspection):
        record.model_rebuild()
    found: DatasetInspection | ModelInspection
    with sandboxed(limits):
        if isinstance(options, InspectDatasetOptions):
            found = inspect_dataset(options.file, options.output, caps=caps, spec=read_dataset_spec(options))
        else:
            found = inspect_model(options.file, read_import(options), options.output, max_bytes=caps.total_bytes)
    if options.json_lines:
        yield found.model_dump_json()
        return
    yield from inspection_lines(found)
    yield f"wrote {options.output / 'report.json'}"


def _replace_given(limits: Any, **values: int | None) -> Any:
    return replace(limits, **{name: value for name, value in values.items() if value is not None})
