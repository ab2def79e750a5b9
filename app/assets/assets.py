"""The life of a project's own data sets and models: posted, inspected by a worker, ready or refused, removed.

    pending -> inspecting -> ready | refused        inspecting -> pending (worker lost or stopped)

A worker owns an inspection by the number of its claim, under a lease in the database's own time, as it owns a job.
What it delivers lies under the file's prefix and that number; nothing else is written there. Jobs name what is ready,
and the file is theirs until they have ended. The caller opens the transaction and commits it.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import queries
from app.assets import uploads
from app.platform.database import hold, now, seconds_from_now
from app.platform.ids import new_id
from app.schemas import FileFailure
from app.tables import Checkpoint, Dataset, Input, Inspected, Job, Model, Upload
from core.schema.catalog import DATASETS, MODELS
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import DatasetInspection, ModelInspection
from core.schema.spec import AnySpec

File: TypeAlias = Inspected
"""A data set or a model."""
Kind = Literal["dataset", "model"]
Row = TypeVar("Row")
Own = TypeVar("Own", Dataset, Model)

TABLES: Mapping[Kind, type[Dataset] | type[Model]] = {"dataset": Dataset, "model": Model}
WORDS: Mapping[Kind, str] = {"dataset": "data set", "model": "model"}
"""What each kind is called in messages."""
NAMED_BY: Mapping[str, Kind] = {"base_model": "model", "dataset": "dataset", "extra_dataset": "dataset"}
"""The fields of a spec that name such a file."""
SHIPPED: Mapping[str, Container[str]] = {"base_model": MODELS, "dataset": DATASETS}
"""The names in those fields that are the catalogue's, and so no file of a project's."""
REPORT = "report.json"

_LOST = FileFailure(
    code="inspection_lost",
    message="The inspection of the file vanished too often, or the file could not be fetched.",
    hint="See whether the worker's machine runs out of memory and reaches the object store, then post the file again.",
    field=None,
)


class NameTaken(Exception):
    """The project has another data set or model of this name; the message says so."""


class NotComplete(Exception):
    """The upload is not complete, or is in use by another file; the message says which."""


class InUse(Exception):
    """Others that have not ended need it, jobs or models that are to be inspected: the first few of them."""

    def __init__(self, user_ids: Sequence[str]) -> None:
        super().__init__(user_ids)
        self.user_ids = user_ids


class LostInspection(Exception):
    """Another worker has the inspection by now, or the file is gone: whoever asked must stop at once."""


@dataclass(frozen=True)
class Inspection:
    """One worker's hold on a file that is to be inspected."""

    kind: Kind
    id: str
    claim_number: int
    key: str
    """Where the object store keeps it."""
    sha256: str
    size: int
    filename: str
    """What it is called where it comes from."""
    said: ImportSpec | None
    """What the owner of a model says of it."""

    @property
    def prefix(self) -> str:
        """Where what it finds goes in the object store."""
        return prefix(self.kind, self.id, self.claim_number)


@dataclass(frozen=True)
class Source:
    """A file that a job takes in."""

    field: str
    """The field of the spec that names it."""
    name: str
    """What the spec calls it."""
    key: str
    sha256: str
    size: int


class Gone(Exception):
    """A file that the job takes in is no longer there."""


def prefix(kind: Kind, file_id: str, claim_number: int | None = None) -> str:
    """Say under which key the object store has what an inspection, or all of them, made of a file."""
    return f"{kind}s/{file_id}" + ("" if claim_number is None else f"/{claim_number}")


def add_dataset(session: Session, project_id: str, name: str, upload: Upload) -> Dataset:
    """Have a completed upload inspected as a data set. Raises NameTaken, NotComplete."""
    _check_upload(session, upload, name)
    return _add(session, Dataset(id=new_id("ds"), **_from_upload(project_id, name, upload)))


def add_model(session: Session, project_id: str, name: str, upload: Upload, said: ImportSpec) -> Model:
    """Have a completed upload inspected as a base model. Raises NameTaken, NotComplete."""
    _check_upload(session, upload, name)
    said_of_it = said.model_dump(mode="json")
    return _add(session, Model(id=new_id("model"), said=said_of_it, **_from_upload(project_id, name, upload)))


def add_checkpoint(session: Session, project_id: str, name: str, checkpoint: Checkpoint) -> Model:
    """Have a checkpoint inspected as a base model, which then has its own copy, in the project's room from now on.
    Raises NameTaken, Deleted."""
    hold(session, Checkpoint, checkpoint.id, lets_change=True)
    model = Model(
        id=new_id("model"),
        project_id=project_id,
        name=name,
        filename=f"{checkpoint.id}.safetensors",
        key=checkpoint.key,
        size=checkpoint.size,
        sha256=checkpoint.sha256,
        said={},
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
    # Held until the end of the transaction: of two requests that use one upload, the second waits and sees the first.
    session.refresh(upload, with_for_update=True)
    if upload.status != "completed":
        raise NotComplete(f"the upload is {upload.status}")
    for table in TABLES.values():
        user = session.scalars(select(table).where(table.upload_id == upload.id)).first()
        # A file that was refused may be posted again, with more said of it.
        if user and not (user.status == "refused" and user.name == name):
            raise NotComplete(f"the upload is that of {user.id}, {user.name}")


def _add(session: Session, file: Own) -> Own:
    table = type(file)
    refused = table.project_id == file.project_id, table.name == file.name, table.status == "refused"
    for before in session.scalars(select(table).where(*refused).with_for_update()).all():
        if before.upload_id and before.upload_id != file.upload_id:
            uploads.discard(session, before.upload_id)
        session.delete(before)
        session.flush()
    try:
        with session.begin_nested():
            session.add(file)
    except IntegrityError:
        word = WORDS["dataset" if isinstance(file, Dataset) else "model"]
        raise NameTaken(f"the project has a {word} {file.name!r} already") from None
    return file


def claim(session: Session, *, worker: str, lease_seconds: float, max_crashes: int) -> Inspection | None:
    """Take the next file that waits to be inspected, those of lost workers included; None when none waits."""
    for kind, table in TABLES.items():
        expire(session, kind, max_crashes=max_crashes)
        waiting = select(table.id).where(table.status == "pending").order_by(table.id).limit(1)
        claimed = _update(
            session,
            kind,
            table.id == waiting.with_for_update(skip_locked=True).scalar_subquery(),
            table.status == "pending",
            status="inspecting",
            claim_number=table.claim_number + 1,
            owner=worker,
            lease_until=seconds_from_now(lease_seconds),
        )
        if claimed:
            file = claimed[0]
            said = ImportSpec.model_validate(file.said) if isinstance(file, Model) else None
            return Inspection(kind, file.id, file.claim_number, file.key, file.sha256, file.size, file.filename, said)
    return None


def have_waited(session: Session, *, seconds: float) -> bool:
    """Whether there are files that have waited to be inspected for longer than so many seconds."""
    for_long = [(table.status == "pending", table.created_at < seconds_from_now(-seconds)) for table in TABLES.values()]
    found = [select(table.id).where(*where).limit(1) for table, where in zip(TABLES.values(), for_long, strict=True)]
    return any(session.scalar(query) for query in found)


def expire(session: Session, kind: Kind, *, max_crashes: int) -> None:
    """Take back the files whose lease has run out, and refuse those that were lost too often."""
    table = TABLES[kind]
    _after_crash(session, kind, table.status == "inspecting", table.lease_until < now(), max_crashes=max_crashes)


def renew(session: Session, held: Inspection, *, lease_seconds: float) -> None:
    """Renew the lease. Raises LostInspection."""
    _one(_update(session, held.kind, *_owned(held), lease_until=seconds_from_now(lease_seconds)))


def accept(
    session: Session,
    held: Inspection,
    findings: DatasetInspection | ModelInspection,
    *,
    key: str,
    size: int,
    sha256: str,
) -> None:
    """Let jobs use the file: what they read lies under `key` by now, and the report under the prefix.

    Raises LostInspection.
    """
    summary = _summarise(findings)
    _end(session, held, status="ready", summary=summary, key=key, size=size, sha256=sha256, failure=None)


def refuse(session: Session, held: Inspection, failure: FileFailure) -> None:
    """Say for good that jobs cannot use the file, and why. Raises LostInspection."""
    _end(session, held, status="refused", failure=failure.model_dump())


def hand_back(session: Session, held: Inspection) -> None:
    """Let another worker inspect the file; this is not a crash. Raises LostInspection."""
    _one(_update(session, held.kind, *_owned(held), status="pending", lease_until=None))


def record_crash(session: Session, held: Inspection, *, max_crashes: int) -> None:
    """Note that the inspection has vanished, and let it begin again, but not for ever. Raises LostInspection."""
    _one(_after_crash(session, held.kind, *_owned(held), max_crashes=max_crashes))


def remove(session: Session, file: File) -> None:
    """Remove a file's row and give its room back; its objects go with `leftovers`. Raises InUse."""
    # Jobs that name it lock the row before they are there.
    if session.scalars(select(type(file)).where(type(file).id == file.id).with_for_update()).one_or_none() is None:
        return
    if users := in_use(session, [file.id]):
        raise InUse(users)
    if file.upload_id:
        uploads.discard(session, file.upload_id)
    session.delete(file)


def in_use(session: Session, source_ids: Sequence[str]) -> Sequence[str]:
    """Name the first few jobs that have not ended and take one of these in, and models yet to be made of one."""
    users = select(Job.id).join(Input, Input.job_id == Job.id)
    users = users.where(Input.source_id.in_(source_ids), Job.finished_at.is_(None))
    to_be_made = select(Model.id).where(
        Model.checkpoint_id.in_(source_ids), Model.status.in_(("pending", "inspecting"))
    )
    found = (query.order_by(query.selected_columns[0]).limit(3) for query in (users, to_be_made))
    return [user for query in found for user in session.scalars(query)][:3]


def find(session: Session, kind: Kind, project_id: str, name_or_id: str) -> File | None:
    """Find a file of this project by what a spec calls it."""
    table: type[File] = TABLES[kind]
    mine = select(table).where(table.project_id == project_id)
    # No name can be an id.
    return session.scalars(mine.where(or_(table.id == name_or_id, table.name == name_or_id))).one_or_none()


def names(session: Session, kind: Kind, project_id: str) -> Sequence[str]:
    """List what this project has that is ready, by name."""
    table = TABLES[kind]
    ready = table.project_id == project_id, table.status == "ready"
    return session.scalars(select(table.name).where(*ready).order_by(table.name)).all()


def link(session: Session, job: Job, spec: AnySpec) -> None:
    """Note which of the project's files a new job takes in, and keep them from being removed before it is there.

    A later file of the same name is another one; a retry takes in what the job before it did. Raises Gone.
    """
    if job.retry_of:
        _link_like(session, job, job.retry_of)
        return
    for field, kind in NAMED_BY.items():
        name = getattr(spec, field, None)
        if not name or name in SHIPPED.get(field, ()):
            continue
        file = find(session, kind, job.project_id, name)
        if file is not None:
            table = TABLES[kind]
            # Whoever removes it at this moment is waited for.
            locked = select(table.id).where(table.id == file.id).with_for_update(read=True)
            if session.scalars(locked).one_or_none() is None:
                raise Gone(f"the {field} {name} has just been removed")
            made_by = (file.job_id, file.checkpoint_id) if isinstance(file, Model) else (None, None)
            session.add(_input(job, field, file.id, file.sha256, *made_by))
        elif checkpoint := queries.find_checkpoint(session, job.project_id, name):
            hold(session, Checkpoint, checkpoint.id, lets_change=True)
            session.add(_input(job, field, checkpoint.id, checkpoint.sha256, checkpoint.job_id, checkpoint.id))


def _link_like(session: Session, job: Job, other_id: str) -> None:
    for taken in inputs(session, other_id):
        tables: tuple[type[Dataset] | type[Model] | type[Checkpoint], ...] = (Dataset, Model, Checkpoint)
        locked = (select(table.id).where(table.id == taken.source_id).with_for_update(read=True) for table in tables)
        if not any(session.scalars(each).one_or_none() for each in locked):
            raise Gone(f"the {taken.field} of {other_id} has been removed")
        made_by = taken.made_by_job, taken.made_by_checkpoint
        session.add(_input(job, taken.field, taken.source_id, taken.sha256, *made_by))


def _input(
    job: Job, field: str, source_id: str, sha256: str, made_by_job: str | None, made_by_checkpoint: str | None
) -> Input:
    return Input(
        job_id=job.id,
        field=field,
        source_id=source_id,
        sha256=sha256,
        made_by_job=made_by_job,
        made_by_checkpoint=made_by_checkpoint,
    )


def sources(session: Session, job_id: str, spec: AnySpec) -> Sequence[Source]:
    """Say where the files lie that a job takes in. Raises Gone."""
    return [
        _source(session, taken, getattr(spec, taken.field))
        for taken in session.scalars(select(Input).where(Input.job_id == job_id).order_by(Input.field)).all()
    ]


def _source(session: Session, taken: Input, name: str) -> Source:
    tables: tuple[type[Dataset] | type[Model] | type[Checkpoint], ...] = (Dataset, Model, Checkpoint)
    found = next((row for table in tables if (row := session.get(table, taken.source_id))), None)
    if isinstance(found, Inspected | Checkpoint):
        return Source(taken.field, name, found.key, found.sha256, found.size)
    raise Gone(f"the {taken.field} {name} is no longer there")


def inputs(session: Session, job_id: str) -> Sequence[Input]:
    """List what a job takes in of the project's own."""
    return session.scalars(select(Input).where(Input.job_id == job_id).order_by(Input.field)).all()


def ancestors(session: Session, project_id: str, job_id: str, *, most: int = 100) -> Sequence[str]:
    """List the jobs that made what a job takes in, and what those took in, the nearest first."""
    found: list[str] = []
    near = [job_id]
    while near and len(found) < most:
        made = select(Input.made_by_job).join(Job, Job.id == Input.job_id).where(Job.project_id == project_id)
        made = made.where(Input.job_id.in_(near), Input.made_by_job.is_not(None))
        before = [each for each in session.scalars(made.order_by(Input.made_by_job.desc())).unique() if each]
        near = [each for each in before if each not in found and each != job_id]
        found += near
    return found[:most]


def leftovers(session: Session, keys: Sequence[str]) -> Sequence[str]:
    """Say which of these keys, each of an inspection's objects, nothing needs any more."""
    needed: dict[str, int] = {}
    for kind, table in TABLES.items():
        claims = session.execute(select(table.id, table.claim_number))
        needed |= {prefix(kind, row.id): row.claim_number for row in claims}
    gone = []
    for key in keys:
        folder, file_id, claim_number, *_ = [*key.split("/"), "", ""]
        latest = needed.get(f"{folder}/{file_id}")
        if latest is None or (claim_number.isdecimal() and int(claim_number) < latest):
            gone.append(key)
    return gone


def _end(session: Session, held: Inspection, **values: Any) -> None:
    _one(_update(session, held.kind, *_owned(held), lease_until=None, finished_at=now(), **values))


def _after_crash(session: Session, kind: Kind, *where: ColumnElement[bool], max_crashes: int) -> Sequence[File]:
    table = TABLES[kind]
    crashes = table.crashes + 1
    refused = _update(
        session,
        kind,
        *where,
        crashes >= max_crashes,
        status="refused",
        failure=_LOST.model_dump(),
        crashes=crashes,
        lease_until=None,
        finished_at=now(),
    )
    # Said again, for a lease may run out between the two.
    again = _update(session, kind, *where, crashes < max_crashes, status="pending", crashes=crashes, lease_until=None)
    return [*refused, *again]


def _owned(held: Inspection) -> tuple[ColumnElement[bool], ...]:
    table = TABLES[held.kind]
    return table.id == held.id, table.claim_number == held.claim_number, table.status == "inspecting"


def _update(session: Session, kind: Kind, *where: ColumnElement[bool], **values: Any) -> Sequence[File]:
    table = TABLES[kind]
    statement = update(table).where(*where).values(values).returning(table)
    options = {"synchronize_session": False, "populate_existing": True}
    changed: Sequence[File] = session.scalars(statement, execution_options=options).all()
    return changed


def _one(rows: Sequence[Row]) -> Row:
    if not rows:
        raise LostInspection
    return rows[0]


def _summarise(findings: DatasetInspection | ModelInspection) -> dict[str, Any]:
    """Keep what lists show; the whole is in the report."""
    if isinstance(findings, ModelInspection):
        shown = findings.model_dump(
            mode="json",
            include={"architecture", "parameters", "shape", "classes", "claims", "source", "source_sha256", "warnings"},
        )
        return {**shown, "warnings": [doubt.code for doubt in findings.warnings]}
    return {
        "shape": list(findings.shape),
        "classes": len(findings.classes),
        "train_examples": findings.train_examples,
        "test_examples": findings.test_examples,
        "refused": findings.refused,
        "overlap": findings.overlap.count,
        "thumbnails": [thumbnail.model_dump(mode="json") for thumbnail in findings.thumbnails],
    }
