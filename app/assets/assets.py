"""A project's own data sets and models: created from an upload or a checkpoint, named by jobs, removed.

    pending -> inspecting -> ready | refused        inspecting -> pending (worker lost or stopped)

These are the assets of a project. The status of an asset follows the task that inspects it
(`app.assets.inspections`). A job that names an asset keeps it from being removed until the job has ended
(`app.assets.inputs`). The caller opens the transaction and commits it.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any, Literal, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import tasks
from app.assets import uploads
from app.platform.database import lock_row
from app.platform.ids import is_id
from app.platform.paging import Part, Place, list_rows
from app.projects import audit, totals
from app.projects.ids import next_id
from app.tables import UNFINISHED, Asset, Checkpoint, Dataset, Input, Job, Model, TaskKind, Upload
from core.schema.catalog import DATASETS, MODELS
from core.schema.dataset_spec import DatasetSpec
from core.schema.import_spec import ImportSpec

Kind = Literal["dataset", "model"]
Own = TypeVar("Own", Dataset, Model)

TABLES: Mapping[Kind, type[Dataset] | type[Model]] = {"dataset": Dataset, "model": Model}
_PREFIXES: Mapping[Kind, str] = {"dataset": "ds", "model": "model"}
WORDS: Mapping[Kind, str] = {"dataset": "data set", "model": "model"}
"""The word for each kind in messages."""
NAMED_BY: Mapping[str, Kind] = {"base_model": "model", "dataset": "dataset", "extra_dataset": "dataset"}
"""The fields of a spec that name an asset."""
SHIPPED: Mapping[str, Container[str]] = {"base_model": MODELS, "dataset": DATASETS}
"""The names in these fields that belong to the catalogue. A project cannot use them for its own assets."""
_TASKS: Mapping[type[Asset], TaskKind] = {Dataset: "inspect_dataset", Model: "inspect_model"}


class NameTaken(Exception):
    """The project has another data set or model of this name; the message says so."""


class NotComplete(Exception):
    """The upload is not complete, or is in use by another data set or model; the message says which."""


class InUse(Exception):
    """Unfinished jobs need it, or models that are still to be inspected; `user_ids` are the first few of these."""

    def __init__(self, user_ids: Sequence[str]) -> None:
        super().__init__(user_ids)
        self.user_ids = user_ids


def add_dataset(session: Session, project_id: str, name: str, upload: Upload, declared: DatasetSpec) -> Dataset:
    """Create a data set from a completed upload, and queue its inspection. Raises NameTaken, NotComplete."""
    dataset_id = next_id(session, project_id, "ds")
    _check_upload(session, upload, name)
    content = declared.model_dump(mode="json", exclude_defaults=True)
    return _add(session, Dataset(id=dataset_id, declared=content, **_from_upload(project_id, name, upload)))


def add_model(session: Session, project_id: str, name: str, upload: Upload, declared: ImportSpec) -> Model:
    """Create a base model from a completed upload, and queue its inspection. Raises NameTaken, NotComplete."""
    model_id = next_id(session, project_id, "model")
    _check_upload(session, upload, name)
    content = declared.model_dump(mode="json")
    model = Model(id=model_id, declared=content, **_from_upload(project_id, name, upload))
    return _add(session, model)


def add_checkpoint(session: Session, project_id: str, name: str, checkpoint: Checkpoint) -> Model:
    """Create a base model from a checkpoint, and queue its inspection, which makes a copy of the file. The copy counts
    against the project's quota from now on. Raises NameTaken, Deleted."""
    model_id = next_id(session, project_id, "model")
    lock_row(session, Checkpoint, checkpoint.id, lets_change=True)
    model = Model(
        id=model_id,
        project_id=project_id,
        name=name,
        filename=f"{checkpoint.id}.safetensors",
        key=checkpoint.key,
        size=checkpoint.size,
        sha256=checkpoint.sha256,
        declared={},
        job_id=checkpoint.job_id,
        checkpoint_id=checkpoint.id,
    )
    return _add(session, model)


def _from_upload(project_id: str, name: str, upload: Upload) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "name": name,
        "upload_id": upload.id,
        "filename": upload.filename,
        "key": uploads.key(upload),
        "size": upload.size,
        "sha256": upload.sha256,
    }


def _check_upload(session: Session, upload: Upload, name: str) -> None:
    # Locked until the end of the transaction: of two requests that use one upload, the second one waits.
    session.refresh(upload, with_for_update=True)
    if upload.status != "completed":
        raise NotComplete(f"the upload is {upload.status}")
    for table in TABLES.values():
        user = session.scalars(select(table).where(table.upload_id == upload.id)).first()
        # An asset that was refused may be posted again, with more declared about it.
        if user and not (user.status == "refused" and user.name == name):
            raise NotComplete(f"the upload is already used by {user.name} ({user.id})")


def _add(session: Session, asset: Own) -> Own:
    table = type(asset)
    asset.created_by = audit.actor()
    refused = table.project_id == asset.project_id, table.name == asset.name, table.status == "refused"
    for before in session.scalars(select(table).where(*refused).with_for_update()).all():
        if before.upload_id and before.upload_id != asset.upload_id:
            uploads.discard(session, before.upload_id)
        _count_copy(session, before, -before.size)
        session.delete(before)
        session.flush()
    try:
        with session.begin_nested():
            session.add(asset)
    except IntegrityError:
        word = WORDS["dataset" if isinstance(asset, Dataset) else "model"]
        raise NameTaken(f"the project has a {word} {asset.name!r} already") from None
    _count_copy(session, asset, asset.size)
    tasks.add(session, _TASKS[table], project_id=asset.project_id, subject_id=asset.id)
    act: audit.Act = "dataset.create" if table is Dataset else "model.create"
    audit.record(session, asset.project_id, act, asset.id, name=asset.name)
    return asset


def _count_copy(session: Session, asset: Asset, size: int) -> None:
    """Count the bytes of a model that is a copy of a checkpoint. Those of others are counted with their upload."""
    if isinstance(asset, Model) and asset.upload_id is None:
        totals.count_bytes(session, asset.project_id, size, uploaded=True)


def remove(session: Session, asset: Asset) -> None:
    """Remove an asset's row and free its room; garbage collection removes its objects. Raises InUse."""
    # The task before its subject, as everywhere.
    tasks.cancel(session, [asset.id])
    # A job that names the asset has locked its row before the job's own row is there.
    locked = select(type(asset)).where(type(asset).id == asset.id).with_for_update()
    if session.scalars(locked, execution_options={"populate_existing": True}).one_or_none() is None:
        return
    if users := in_use(session, [asset.id]):
        raise InUse(users)
    if asset.upload_id:
        uploads.discard(session, asset.upload_id)
    _count_copy(session, asset, -asset.size)
    session.delete(asset)
    act: audit.Act = "dataset.delete" if isinstance(asset, Dataset) else "model.delete"
    audit.record(session, asset.project_id, act, asset.id, name=asset.name)


def in_use(session: Session, source_ids: Sequence[str]) -> Sequence[str]:
    """Name the first few unfinished jobs that read one of these, and models that are still to be made of one."""
    users = select(Job.id).join(Input, Input.job_id == Job.id)
    users = users.where(Input.source_id.in_(source_ids), Job.status.in_(UNFINISHED), Job.finished_at.is_(None))
    to_be_made = select(Model.id).where(
        Model.checkpoint_id.in_(source_ids), Model.status.in_(("pending", "inspecting"))
    )
    found = (query.order_by(query.selected_columns[0]).limit(3) for query in (users, to_be_made))
    return [user for query in found for user in session.scalars(query)][:3]


def find(session: Session, kind: Kind, project_id: str, name_or_id: str) -> Asset | None:
    """Find an asset of this project by its id or name."""
    table: type[Asset] = TABLES[kind]
    mine = select(table).where(table.project_id == project_id)
    # A name cannot look like an id. Asked for both in one condition, a planner may read all files of the project.
    which = table.id if is_id(_PREFIXES[kind], name_or_id) else table.name
    return session.scalars(mine.where(which == name_or_id)).one_or_none()


def list_own(session: Session, kind: Kind, project_id: str, *, after: str | None, limit: int) -> Part[Asset]:
    """List the project's own data sets or models, oldest first."""
    table: type[Any] = TABLES[kind]
    place = Place([table.project_id], [project_id])
    return list_rows(session, table, table.id, place, after=after, limit=limit, order="asc")


def names(session: Session, kind: Kind, project_id: str) -> Sequence[str]:
    """List the names of this project's assets that are ready."""
    table = TABLES[kind]
    ready = table.project_id == project_id, table.status == "ready"
    return session.scalars(select(table.name).where(*ready).order_by(table.name)).all()
