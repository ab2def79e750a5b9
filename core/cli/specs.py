"""The spec of a command: what the spec file says, changed by the fields that are given as options."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.cli.options import Options, RunOptions, TrainingOptions
from core.schema.catalog import DATASETS, OWN_CLASS
from core.schema.checkpoint_header import read_origins
from core.schema.dataset_spec import DatasetSpec
from core.schema.errors import BadInput
from core.schema.import_spec import ImportSpec
from core.schema.overrides import NotAnObject, override
from core.schema.preprocessing import Preprocessing
from core.schema.radius import propose_radii
from core.schema.spec import AnySpec, default_eps, parse, with_data_of, with_defaults_for
from core.schema.strict_json import read_json
from core.schema.suggestions import did_you_mean
from core.schema.validation import FieldError, field_errors


def read_spec(options: RunOptions) -> AnySpec:
    """Make the spec of a run of its file and options. Raises BadInput."""
    body = _read_file(options.spec) if options.spec else {}
    _check_body(body, options)
    extra_data = options.extra_data if isinstance(options, TrainingOptions) else None
    if isinstance(options, TrainingOptions) and "WORLD_SIZE" in os.environ:
        body.setdefault("gpus", _read_world_size(os.environ["WORLD_SIZE"]))
    if options.weights and options.command != "train":
        body.setdefault("base_model", _name_after(options.weights.stem, "--base-model"))
    if options.model and options.command == "train":
        body.setdefault("architecture", f"{OWN_CLASS}{options.model}")
    elif options.model:
        body.setdefault("base_model", _name_after(options.model.rpartition(":")[2], "--base-model"))
    origins = read_origins(options.weights) if options.weights and options.command != "train" else None
    if origins:
        dataset = options.fields.get("dataset") or body.get("dataset")
        named = {"dataset": dataset, **body} if dataset else body
        body = with_data_of(named, origins.dataset, origins.eps if "eps" not in options.fields else {})
    _override_fields(body, options.fields)
    if extra_data and not body.get("extra_dataset"):
        body["extra_dataset"] = _name_after(extra_data.name.partition(".")[0], "--extra-dataset")
    if options.data and "dataset" not in body:
        raise BadInput(
            f"{options.data} is given, but not the name of the data set in it",
            hint="add --dataset: cifar10, cifar100, imagenet, or any name for images of your own",
            field="dataset",
        )
    if origins:
        body = with_defaults_for(body, origins.architecture)
    with _bad_input(options.command, _missing_data(body.get("dataset"), options.data), options.data, body):
        return parse(body)


def read_import(options: Options) -> ImportSpec:
    """Make the spec of an import of the options. Raises BadInput."""
    with _bad_input(options.command, {}):
        return ImportSpec.model_validate(options.fields)


def read_dataset_spec(options: Options) -> DatasetSpec:
    """Make the spec of a data set of the options. Raises BadInput."""
    body: dict[str, Any] = {}
    _override_fields(body, options.fields)
    with _bad_input(options.command, {}):
        return DatasetSpec.model_validate(body)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        body = read_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", hint="check the path", field="spec") from error
    except ValueError as error:
        raise BadInput(
            f"{path} is not valid JSON for a spec: {error}", hint="correct the file", field="spec"
        ) from error
    if not isinstance(body, dict):
        raise BadInput(f"{path} is not a JSON object", hint='write a spec such as {"base_model": ...}', field="spec")
    return body


def _check_body(body: dict[str, Any], options: RunOptions) -> None:
    """Check that a spec file is for this command; a file that names no kind becomes one."""
    body.setdefault("kind", options.command)
    if body["kind"] != options.command:
        raise BadInput(
            f"{options.spec} is a spec of kind {body['kind']!r}",
            hint=f"run: python -m core {body['kind']}",
            field="kind",
        )
    # A job of the service may have these two beside its spec. Here nothing waits, so a priority changes nothing.
    body.pop("priority", None)
    if body.pop("webhook", None) is not None:
        raise BadInput(
            "webhook is only supported for jobs of the service",
            hint="leave webhook out, or post the spec to the service",
            field="webhook",
        )


def _override_fields(body: dict[str, Any], fields: dict[str, Any]) -> None:
    # In the order of the spec's fields: base model and data set, which decide the default radii, come before eps.
    for path, value in fields.items():
        if path.startswith("eps.") and "eps" not in body:
            # The radius of one norm leaves the other norms as they are by default.
            body["eps"] = default_eps(body.get("base_model"), body.get("dataset"))
        try:
            override(body, path, value)
        except NotAnObject as error:
            hint = f"give {error.field} as an object, or leave --{path} out"
            raise BadInput(str(error), hint=hint, field=error.field) from error


def _missing_data(dataset: Any, data: Path | None) -> dict[str, str]:
    """Name the error of a data set that is neither built in nor given by its path."""
    if not isinstance(dataset, str) or not dataset or dataset in DATASETS or data:
        return {}
    remedy = "name one of these, or give the path of the images with --data"
    return {"dataset": f"data set {dataset!r} is not built in; {did_you_mean(dataset, DATASETS)}; {remedy}"}


@contextmanager
def _bad_input(
    command: str, problems: dict[str, str], data: Path | None = None, body: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Raise a validation error, and other problems of fields, as one BadInput that names every field.

    data, body: of a run, to propose radii where the spec lacks them.
    """
    cause: ValidationError | None = None
    try:
        yield
    except ValidationError as error:
        cause = error
        found = {
            problem.pointer.lstrip("/").replace("/", "."): problem.detail + _propose_radii(problem, data, body or {})
            for problem in field_errors(error)
            # The radii that the data set would give are missing only with it.
            if not (problems and (problem.pointer, problem.code) == ("/eps", "missing"))
        }
        problems = found | problems
    if problems:
        field, first = next(iter(problems.items()))
        alone = len(problems) == 1
        raise BadInput(
            first if alone else "; ".join(f"{name}: {detail}" for name, detail in problems.items()),
            hint=f"see python -m core {command} --help",
            field=field if alone else None,
        ) from cause


def _propose_radii(problem: FieldError, data: Path | None, body: Mapping[str, Any]) -> str:
    """Propose radii by the size of the images, where a spec lacks them."""
    if (problem.pointer, problem.code) != ("/eps", "missing") or data is None:
        return ""
    # Slow to import, and only needed here.
    from core.data.images import look_at_shape

    given = body.get("preprocessing")
    try:
        preprocessing = Preprocessing.model_validate({} if given is None else given)
    except ValidationError:
        return ""
    share = body.get("test_share")
    shape = look_at_shape(data, preprocessing, share if isinstance(share, float) and 0 < share < 1 else None)
    return f"; {propose_radii(shape).say()}" if shape else ""


def _read_world_size(text: str) -> int:
    """Read the number of processes that torchrun has started."""
    if not text.isdecimal():
        raise BadInput(
            f"the environment variable WORLD_SIZE is {text!r}, which is not a number of processes",
            hint="unset it, or start the run with torchrun, which sets it",
            field="gpus",
        )
    return int(text)


def _name_after(word: str, option: str) -> str:
    """Make the name of a model or data set from that of its file, with the characters that names may have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", word, flags=re.ASCII).lstrip("._-")[:128]
    if not name:
        raise BadInput(
            f"{word!r} has no characters that a name may have",
            hint=f"give one of letters and digits with {option}",
            field=option.removeprefix("--").replace("-", "_"),
        )
    return name
