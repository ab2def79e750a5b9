"""Inputs: what a job reads of its project, as it was when the job was posted; and the lineage that they make."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.assets import assets
from app.assets.checkpoints import find_checkpoint
from app.platform.database import lock_row
from app.tables import POSTED, Asset, Checkpoint, Dataset, Input, Job, Model
from core.schema.spec import AnySpec

_TABLES: tuple[type[Dataset] | type[Model] | type[Checkpoint], ...] = (Dataset, Model, Checkpoint)


@dataclass(frozen=True)
class InputFile:
    """The file of an input, in the object store."""

    field: str
    """The field of the spec that names it."""
    name: str
    """The name in that field."""
    key: str
    sha256: str
    size: int


class Gone(Exception):
    """An input of the job was deleted."""


def link(session: Session, job: Job, spec: AnySpec) -> None:
    """Write the inputs of a new job, and keep them from being removed until its row is committed.

    A later asset of the same name is another one. A retry has the inputs of the job that it continues. Raises Gone.
    """
    if job.retry_of:
        _link_like(session, job, job.retry_of)
        return
    for field, kind in assets.NAMED_BY.items():
        name = getattr(spec, field, None)
        if not name or name in assets.SHIPPED.get(field, ()):
            continue
        asset = assets.find(session, kind, job.project_id, name)
        if asset is not None:
            table = assets.TABLES[kind]
            # Waits for a transaction that removes the asset at this moment.
            locked = select(table.id).where(table.id == asset.id).with_for_update(read=True)
            if session.scalars(locked).one_or_none() is None:
                raise Gone(f"the {field} {name} has just been removed")
            made_by = (asset.job_id, asset.checkpoint_id) if isinstance(asset, Model) else (None, None)
            session.add(_input(job, field, asset.id, asset.sha256, *made_by))
        elif checkpoint := find_checkpoint(session, job.project_id, name):
            lock_row(session, Checkpoint, checkpoint.id, lets_change=True)
            session.add(_input(job, field, checkpoint.id, checkpoint.sha256, checkpoint.job_id, checkpoint.id))


def _link_like(session: Session, job: Job, other_id: str) -> None:
    for job_input in list_inputs(session, other_id):
        locked = (
            select(table.id).where(table.id == job_input.source_id).with_for_update(read=True) for table in _TABLES
        )
        if not any(session.scalars(each).one_or_none() for each in locked):
            raise Gone(f"the {job_input.field} of {other_id} has been removed")
        made_by = job_input.made_by_job, job_input.made_by_checkpoint
        session.add(_input(job, job_input.field, job_input.source_id, job_input.sha256, *made_by))


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


def input_files(session: Session, job_id: str, spec: AnySpec) -> Sequence[InputFile]:
    """List the files of a job's inputs. Raises Gone."""
    return [
        _input_file(session, job_input, getattr(spec, job_input.field))
        for job_input in session.scalars(select(Input).where(Input.job_id == job_id).order_by(Input.field)).all()
    ]


def _input_file(session: Session, job_input: Input, name: str) -> InputFile:
    found = next((row for table in _TABLES if (row := session.get(table, job_input.source_id))), None)
    if isinstance(found, Asset | Checkpoint):
        return InputFile(job_input.field, name, found.key, found.sha256, found.size)
    raise Gone(f"the {job_input.field} {name} is no longer there")


def list_inputs(session: Session, job_id: str) -> Sequence[Input]:
    """List the inputs of a job."""
    return session.scalars(select(Input).where(Input.job_id == job_id).order_by(Input.field)).all()


def dependents(session: Session, job: Job, *, most: int = 100) -> Sequence[Job | Model]:
    """List jobs that start from a checkpoint of a job or resume from its state, and models made of one; of each at most
    `most`, the oldest first."""
    # By their ids, and sorted here: in one statement a planner may read all jobs of the project in the order asked for.
    users = set(session.scalars(select(Input.job_id).where(Input.made_by_job == job.id).limit(most)))
    users |= set(session.scalars(select(Job.id).where(Job.retry_of == job.id)))
    jobs = session.scalars(select(Job).where(Job.id.in_(users), *POSTED)).all() if users else []
    models = session.scalars(select(Model).where(Model.job_id == job.id).limit(most)).all()
    return [*sorted(jobs, key=lambda each: each.id), *sorted(models, key=lambda each: each.id)]


def ancestors(session: Session, project_id: str, job_id: str, *, most: int = 100) -> Sequence[str]:
    """List the jobs that made what a job reads, and what those read, the nearest first."""
    found: list[str] = []
    near = [job_id]
    while near and len(found) < most:
        made = (
            select(Input.made_by_job)
            .join(Job, Job.id == Input.job_id)
            .where(Job.project_id == project_id, Job.deleted_at.is_(None))
        )
        made = made.where(Input.job_id.in_(near), Input.made_by_job.is_not(None))
        before = [each for each in session.scalars(made.order_by(Input.made_by_job.desc())).unique() if each]
        near = [each for each in before if each not in found and each != job_id]
        found += near
    return found[:most]
