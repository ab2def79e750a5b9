"""Inspection, origin and use of a project's own data sets and models."""

from typing import Literal

from app.schemas.answer import Answer
from core.schema.inspection_report import PartName

AssetStatus = Literal["pending", "inspecting", "ready", "refused"]


class AssetFailure(Answer):
    """Why a data set or model was refused."""

    code: str
    """Stable, for programs: from `core.schema.errors`, or the service's own inspection_crashed, inspection_lost,
    storage_unavailable, disk_full, internal_error."""
    message: str
    """What is wrong with the file."""
    hint: str
    """What to do."""
    field: str | None
    """The field of the request, or the input, that is wrong."""


class MadeBy(Answer):
    """The job and checkpoint that a model was made from. Both ids remain after their object is deleted."""

    job: str
    """Id of the job."""
    checkpoint: str
    """Id of the checkpoint."""


class JobInput(Answer):
    """A data set, model or checkpoint of the project that a job uses."""

    field: Literal["base_model", "dataset", "extra_dataset"]
    """The field of the spec that names it."""
    id: str
    """Id of the data set, model or checkpoint when the job was posted. The id remains after the object is deleted."""
    sha256: str
    """SHA-256 of the file."""
    made_by: MadeBy | None
    """The job that made it, for a checkpoint and for a model made of one."""


class Dependent(Answer):
    """What was made of the results of a job, and stays without its origin when that job is deleted."""

    object: Literal["job", "model"]
    """A job that starts from a checkpoint of the job, or resumes from its state; or a base model of a checkpoint."""
    id: str
    """Id of the job or model."""
    name: str
    """Its name; empty for a job without one."""


class Lineage(Answer):
    """Where the inputs of a job come from: its own inputs, and the jobs that made them, recursively; and what was
    made of its own results."""

    object: Literal["lineage"]
    """Type of the object."""
    job_id: str
    """Id of the job."""
    inputs: list[JobInput]
    """The inputs that belong to the project. Inputs from the catalogue or the operator's folders are in the spec."""
    ancestors: list[str]
    """Ids of the jobs whose results led to this one, nearest first."""
    dependents: list[Dependent]
    """The first 100 jobs and the first 100 models that were made directly of the results of this one, oldest first."""


class ThumbnailLink(Answer):
    """A small PNG of one image."""

    href: str
    """Address of the PNG."""
    name: str
    """Path of the image in the archive."""
    part: PartName
    """The part of the data set that the image belongs to."""
    label: str
    """Class of the image."""
