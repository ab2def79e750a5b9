"""Data sets and models of a project's own, and what a job took in."""

from typing import Literal

from app.schemas.answer import Answer

FileStatus = Literal["pending", "inspecting", "ready", "refused"]


class FileFailure(Answer):
    """Why a file was refused."""

    code: str
    """Stable, for programs: from `core.schema.errors`, or the service's own inspection_crashed, inspection_lost,
    storage_unavailable, disk_full, internal_error."""
    message: str
    """What is wrong with it."""
    hint: str
    """What to do."""
    field: str | None
    """The field of the request, or the input, that it is about."""


class MadeBy(Answer):
    """The job that a model comes from; both ids outlive what they name."""

    job: str
    """The job."""
    checkpoint: str
    """The checkpoint of it that the model was made of."""


class JobInput(Answer):
    """A file of the project's own that a job takes in."""

    field: Literal["base_model", "dataset", "extra_dataset"]
    """The field of the spec that names it."""
    id: str
    """The data set, model or checkpoint, as it was when the job was posted; it outlives what it names."""
    sha256: str
    """Of the file."""
    made_by: MadeBy | None
    """The job that it comes from, for a checkpoint and for a model made of one."""


class Lineage(Answer):
    """Where the inputs of a job come from: its own, then those of the jobs that made them, and so on."""

    object: Literal["lineage"]
    """What this is."""
    job_id: str
    """The job."""
    inputs: list[JobInput]
    """Its inputs that are the project's own. What the catalogue or the operator has, the spec names."""
    ancestors: list[str]
    """The jobs before it, the nearest first."""


class ThumbnailLink(Answer):
    """A small PNG of one image."""

    href: str
    """Where it is."""
    name: str
    """The image's path in the archive."""
    part: Literal["train", "test"]
    """The part it belongs to."""
    label: str
    """Its class."""
