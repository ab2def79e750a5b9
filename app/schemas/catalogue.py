"""What a job can name."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Listed
from app.schemas.assets import FileFailure, FileStatus, MadeBy, ThumbnailLink
from core.schema.catalog import Norm


class Model(Listed):
    """A base model that a job can name."""

    object: Literal["model"]
    """What this is."""
    name: str
    """What specs call it, as well as by its id."""
    source: Literal["shipped", "local", "own"]
    """shipped with Temper, a file in this instance's models folder, or the project's own."""
    status: FileStatus
    """Whether jobs can name it; one of the project's own is inspected by a worker first."""
    description: str
    """What it is."""
    architecture: str | None
    """Its network; null for a local file, which only a run opens."""
    parameters: int | None
    """How many its network has, of the project's own."""
    shape: tuple[int, int, int] | None
    """Channels, height and width of the images that it takes, where that is known."""
    classes: int | None
    """How many classes it tells apart, where that is known."""
    dataset: str | None
    """What it was trained on, where that is known."""
    norm: Norm | None
    """The norm it was made robust to, where that is known."""
    eps: float | None
    """The radius it was made robust at, where that is known."""
    size: int | None
    """Bytes of its file; null for a shipped one."""
    sha256: str | None
    """Of its file; null for a local one, which only a run opens."""
    made_by: MadeBy | None
    """The job that it comes from, where it was made of a checkpoint."""
    warnings: list[str]
    """Codes of what its inspection found doubtful; the report has the words."""
    failure: FileFailure | None
    """Why it was refused, if it was."""
    created_at: datetime | None
    """When it was posted, of the project's own."""
    finished_at: datetime | None
    """When its inspection ended, of the project's own."""
    report: str | None
    """Where the report of its inspection is."""


class Dataset(Listed):
    """A data set that a job can name."""

    object: Literal["dataset"]
    """What this is."""
    name: str
    """What specs call it, as well as by its id."""
    source: Literal["shipped", "local", "own"]
    """known to Temper, a folder or archive in this instance's datasets folder, or the project's own."""
    status: FileStatus
    """Whether jobs can name it; one of the project's own is inspected by a worker first."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """Channels, height and width; null for a local one, which only a run opens."""
    classes: int | None
    """How many classes, where that is known."""
    train_examples: int | None
    """Images in the training part, where that is known."""
    test_examples: int | None
    """Images in the test part, where that is known."""
    eps: dict[Norm, float]
    """The radii a job gets that names none."""
    size: int | None
    """Bytes of its file, of the project's own."""
    sha256: str | None
    """Of its file, of the project's own."""
    refused: int | None
    """Images that no run sees, of the project's own; the report says why."""
    overlap: int | None
    """Test images that are in the training part, too, of the project's own."""
    thumbnails: list[ThumbnailLink]
    """A few of its images, of the project's own."""
    failure: FileFailure | None
    """Why it was refused, if it was."""
    created_at: datetime | None
    """When it was posted, of the project's own."""
    finished_at: datetime | None
    """When its inspection ended, of the project's own."""
    report: str | None
    """Where the report of its inspection is."""


class Method(Listed):
    """A training method that a job can name."""

    object: Literal["method"]
    """What this is."""
    description: str
    """What it is."""
    norms: list[Norm] | None
    """The norms it attacks when a job names none; null when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float]
    """What a job can set of it beside norms and steps, each with its default."""


class Architecture(Listed):
    """A network that a training job can name."""

    object: Literal["architecture"]
    """What this is."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """The only image shape it takes (channels, height, width); null when it takes more than one."""
    learning_rate: float
    """The highest learning rate of a run that names none."""
