"""Texts of the failures that the worker itself finds; the failures of a run come from its training process."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.schemas import AssetFailure, Failure


class _Template(NamedTuple):
    """A failure whose message and hint have places for values."""

    code: str
    message: str
    hint: str
    retryable: bool = False


_CHECK_STORE = "Check that the object store is reachable, then resubmit the job."

FAILURES: Mapping[str, _Template] = {
    "not_started": _Template(
        "internal_error",
        "The worker could not start the run: {error}.",
        "Check the worker's machine, then resubmit the job.",
        retryable=True,
    ),
    "disk_full": _Template(
        "disk_full",
        "The worker could not start the run: {error}.",
        "Make room on the worker's machine, then resubmit the job.",
        retryable=True,
    ),
    "too_few_gpus": _Template(
        "bad_input",
        "The job asks for {wanted} GPUs; the worker that took it has {present}.",
        "Set gpus to {possible}, or run a worker on a machine that has {wanted}.",
    ),
    "input_unavailable": _Template(
        "storage_unavailable", "The {field} {name} could not be fetched: {error}.", _CHECK_STORE, retryable=True
    ),
    "input_removed": _Template("bad_input", "{error}.", "Upload the file again, then resubmit the job."),
    "shard_unavailable": _Template(
        "storage_unavailable", "The report of a shard could not be fetched: {error}.", _CHECK_STORE, retryable=True
    ),
    "exited": _Template(
        "internal_error",
        "The training process ended with {exit} without an error event. Last stderr output: {stderr}",
        "This is a bug in Temper or in its installation: report it with the last stderr output.",
    ),
    "not_stored": _Template(
        "storage_unavailable",
        "A file of the job could not be stored: {error}.",
        "Check that the object store is reachable, then retry the job. {kept}",
        retryable=True,
    ),
    "store_full": _Template(
        "disk_full",
        "A file of the job could not be stored: {error}.",
        "Make room in the object store, then retry the job. {kept}",
        retryable=True,
    ),
    "inspection_crashed": _Template(
        "inspection_crashed",
        "The file could not be inspected: {reason}.",
        "The file is corrupt or malicious: recreate it from the original data.",
    ),
    "inspection_late": _Template(
        "over_limit",
        "The inspection did not finish in time.",
        "Use a smaller file, or have the operator allow more time (TEMPER_INSPECTION_SECONDS).",
    ),
    "inspection_store_full": _Template(
        "disk_full",
        "The object store has no room for the result of the inspection.",
        "Have the operator make room in the object store, then post the file again.",
    ),
}
"""What people are told, by what happened; the code is part of the API."""


def job_failure(happened: str, *, field: str | None = None, **values: Any) -> Failure:
    """Fill in the failure of a job. field: the field of the spec that it is about."""
    template = FAILURES[happened]
    return Failure(**_texts(template, field=field, **values), field=field, retryable=template.retryable)


def asset_failure(happened: str, **values: Any) -> AssetFailure:
    """Fill in the failure of a file's inspection."""
    return AssetFailure(**_texts(FAILURES[happened], **values), field=None)


def _texts(template: _Template, **values: Any) -> dict[str, str]:
    message, hint = (text.format(**values).strip() for text in (template.message, template.hint))
    return {"code": template.code, "message": message, "hint": hint}
