"""Inspections of data sets and models: two kinds of tasks, which workers do.

What an inspection stores lies under the asset's folder and the number of the task's attempt; no other attempt writes
there. The caller opens the transaction and commits it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app import tasks
from app.assets.assets import TABLES, Kind
from app.projects import totals
from app.schemas import AssetFailure, AssetStatus
from app.tables import Dataset, Model, Task, TaskStatus
from app.tasks import TaskClaim
from core.schema.dataset_spec import DatasetSpec
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import DatasetInspection, ModelInspection

REPORT = "report.json"
"""The name of the report in the folder of an inspection."""

_CRASHED = AssetFailure(
    code="inspection_lost",
    message="The inspection of the file crashed too often, or the file could not be fetched.",
    hint="Check that the worker's machine has enough memory and reaches the object store, then post the file again.",
    field=None,
)


_STATUS: dict[TaskStatus, AssetStatus] = {
    "queued": "pending",
    "running": "inspecting",
    "succeeded": "ready",
    "failed": "refused",
}


@dataclass(frozen=True)
class Inspection:
    """One worker's claim of an asset that is to be inspected."""

    task: TaskClaim
    kind: Kind
    id: str
    key: str
    """The asset's key in the object store."""
    sha256: str
    size: int
    filename: str
    """The client's name for it."""
    declared: ImportSpec | DatasetSpec
    """What the owner declares about it."""

    @property
    def attempt(self) -> int:
        """The number of the claim."""
        return self.task.attempt

    @property
    def prefix(self) -> str:
        """The folder in the object store for what this attempt makes."""
        return prefix(self.kind, self.id, self.attempt)


def prefix(kind: Kind, asset_id: str, attempt: int) -> str:
    """Name the folder in the object store of what an attempt at an inspection makes."""
    return f"{kind}s/{asset_id}/{attempt}"


def _follow(kind: Kind, session: Session, task: Task) -> None:
    """Copy the status of the inspection task to the asset's row."""
    values: dict[str, Any] = {
        "status": _STATUS[task.status],
        "failure": task.failure,
        "finished_at": task.finished_at,
        **(task.result or {}),
    }
    if task.status == "succeeded":
        values["report_prefix"] = prefix(kind, task.subject_id, task.attempt)
    table = TABLES[kind]
    if table is Model and task.result:
        copy = session.get(Model, task.subject_id, populate_existing=True, with_for_update=True)
        if copy and copy.upload_id is None:
            totals.count_bytes(session, copy.project_id, int(task.result["size"]) - copy.size, uploaded=True)
    statement = update(table).where(table.id == task.subject_id).values(values)
    session.execute(statement, execution_options={"synchronize_session": False})


def _follow_dataset(session: Session, task: Task) -> None:
    _follow("dataset", session, task)


def _follow_model(session: Session, task: Task) -> None:
    _follow("model", session, task)


KINDS: Sequence[tasks.Kind] = (
    tasks.Kind("inspect_dataset", _follow_dataset, _CRASHED.model_dump()),
    tasks.Kind("inspect_model", _follow_model, _CRASHED.model_dump()),
)


def claim(session: Session, *, worker: str, lease_seconds: float, max_crashes: int) -> Inspection | None:
    """Claim the next asset that waits for its inspection, those of lost workers included; None where none waits."""
    task = tasks.claim(session, KINDS, owner=worker, lease_seconds=lease_seconds, max_crashes=max_crashes)
    if task is None:
        return None
    kind: Kind = "dataset" if task.kind.name == "inspect_dataset" else "model"
    table: type[Dataset | Model] = TABLES[kind]
    asset = session.get_one(table, task.subject_id, populate_existing=True)
    of_kind = ImportSpec if isinstance(asset, Model) else DatasetSpec
    declared = of_kind.model_validate(asset.declared)
    return Inspection(task, kind, asset.id, asset.key, asset.sha256, asset.size, asset.filename, declared)


def renew(session: Session, inspection: Inspection, *, lease_seconds: float) -> None:
    """Extend the lease. Raises LeaseLost."""
    tasks.renew(session, inspection.task, lease_seconds=lease_seconds)


def accept(
    session: Session,
    inspection: Inspection,
    findings: DatasetInspection | ModelInspection,
    *,
    key: str,
    size: int,
    sha256: str,
) -> None:
    """Make the asset ready. What runs read is stored under `key`, and the report under the prefix. Raises LeaseLost."""
    result = {"summary": _summarise(findings), "key": key, "size": size, "sha256": sha256}
    tasks.succeed(session, inspection.task, result)


def refuse(session: Session, inspection: Inspection, failure: AssetFailure) -> None:
    """Refuse the asset for good: jobs cannot name it. Raises LeaseLost."""
    tasks.fail(session, inspection.task, failure.model_dump())


def hand_back(session: Session, inspection: Inspection) -> None:
    """Let another worker inspect the asset; this is not a crash. Raises LeaseLost."""
    tasks.hand_back(session, inspection.task)


def record_crash(session: Session, inspection: Inspection, *, max_crashes: int) -> None:
    """Count a crash of the inspection, and let it start again unless it has crashed too often. Raises LeaseLost."""
    tasks.record_crash(session, inspection.task, max_crashes=max_crashes)


def leftovers(session: Session, found: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """List those of the keys of inspections' objects, by the id of their asset, that no asset needs.

    The keys must have been listed before: an object that is stored after that is not a leftover yet.
    """
    attempts = tasks.latest_attempts(session, KINDS, found)
    ready: dict[str, str] = {}
    for table in TABLES.values():
        where = table.id.in_(found), table.report_prefix.is_not(None)
        ready.update(
            (row.id, row.report_prefix) for row in session.execute(select(table.id, table.report_prefix).where(*where))
        )
    gone = []
    for asset_id, keys in found.items():
        for key in keys:
            _, _, number, *_ = [*key.split("/"), ""]
            if asset_id in ready:
                is_needed = key.startswith(f"{ready[asset_id]}/")
            else:
                is_needed = asset_id in attempts and number.isdecimal() and int(number) >= attempts[asset_id]
            if not is_needed:
                gone.append(key)
    return gone


def _summarise(findings: DatasetInspection | ModelInspection) -> dict[str, Any]:
    """Select what lists show of the report."""
    if isinstance(findings, ModelInspection):
        shown = findings.model_dump(
            mode="json",
            include={
                *("architecture", "parameters", "shape", "classes", "claims", "source", "source_sha256", "warnings"),
                *("key", "other_keys", "alternatives", "dataset", "eps"),
            },
        )
        return {**shown, "warnings": [warning.model_dump(mode="json") for warning in findings.warnings]}
    return {
        "shape": list(findings.shape),
        "classes": len(findings.classes),
        "train_examples": findings.train_examples,
        "test_examples": findings.test_examples,
        "held_out_examples": findings.held_out_examples,
        "format": findings.format,
        "sizes": findings.sizes.model_dump(mode="json"),
        "preprocessing": findings.preprocessing.model_dump(mode="json"),
        "proposal": None if findings.proposal is None else findings.proposal.model_dump(mode="json"),
        "test_share": findings.test_share,
        "refused": findings.refused,
        "unread": findings.unread,
        "transparent": findings.transparent,
        "overlap": findings.overlap.count,
        "repeated": sum(doubles.count for doubles in findings.repeated.values()),
        "conflicting": findings.conflicting.count,
        "warnings": [warning.model_dump(mode="json") for warning in findings.warnings],
        "thumbnails": [thumbnail.model_dump(mode="json") for thumbnail in findings.thumbnails],
    }
