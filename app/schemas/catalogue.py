"""Models, data sets, methods, architectures and threats that a job can name."""

from datetime import datetime
from typing import Literal

from app.schemas.answer import Listed
from app.schemas.assets import AssetFailure, AssetStatus, MadeBy, ThumbnailLink
from core.schema.catalog import Norm, Optimizer
from core.schema.inspection_report import DatasetFormat
from core.schema.preprocessing import Preprocessing, Sizes
from core.schema.progress import WarningRecord


class Model(Listed):
    """A base model that a job can name."""

    object: Literal["model"]
    """Type of the object."""
    name: str
    """The name that specs use; they can use the id as well."""
    source: Literal["shipped", "local", "own"]
    """shipped: comes with Temper. local: a file in this instance's models folder. own: belongs to the project."""
    status: AssetStatus
    """ready if jobs can name it. A worker inspects a model of the project before it is ready."""
    description: str
    """Description in one sentence."""
    architecture: str | None
    """Its network; null for a local file, which only a run opens."""
    parameters: int | None
    """Number of parameters of the network, for a model of the project."""
    shape: tuple[int, int, int] | None
    """Channels, height and width of the images that it takes, if known."""
    classes: int | None
    """Number of classes, if known."""
    dataset: str | None
    """The data set it was trained on, if known."""
    norm: Norm | None
    """The norm it was made robust to, if known."""
    eps: float | None
    """The radius it was made robust at, if known."""
    size: int | None
    """Bytes of its file; null for a shipped model."""
    sha256: str | None
    """SHA-256 of its file; null for a local file, which only a run opens."""
    key: str | None
    """Where in the uploaded file its weights were; empty where the file is nothing else, null if it is not known."""
    other_keys: list[str]
    """Where in that file other weights are, which were not taken. A model posted with one of these as key has them."""
    alternatives: list[str]
    """Networks with the same weights that compute something else, such as with another activation, if the network was
    recognised by its weights. A model posted with one of these as architecture is that one."""
    made_by: MadeBy | None
    """The job that made it, if it was made of a checkpoint."""
    warnings: list[WarningRecord]
    """Reasons to doubt it, found by the inspection of a model of the project."""
    failure: AssetFailure | None
    """Why it was refused; null if it was not."""
    created_at: datetime | None
    """When it was posted, for a model of the project."""
    finished_at: datetime | None
    """When its inspection ended, for a model of the project."""
    report: str | None
    """Address of its inspection report."""


class Dataset(Listed):
    """A data set that a job can name."""

    object: Literal["dataset"]
    """Type of the object."""
    name: str
    """The name that specs use; they can use the id as well."""
    source: Literal["shipped", "local", "own"]
    """shipped: Temper loads it by name. local: a folder or archive in this instance's datasets folder. own: belongs to
    the project."""
    status: AssetStatus
    """ready if jobs can name it. A worker inspects a data set of the project before it is ready."""
    description: str
    """Description in one sentence."""
    shape: tuple[int, int, int] | None
    """Channels, height and width; null for a local data set, which only a run opens."""
    classes: int | None
    """Number of classes, if known."""
    train_examples: int | None
    """Number of images in the training part, if known."""
    test_examples: int | None
    """Number of images in the test part, if known."""
    held_out_examples: int | None
    """Number of images in the data set's own held-out part, if known; 0 where runs hold out training images."""
    format: DatasetFormat | None
    """How its images are stored, for a data set of the project."""
    sizes: Sizes | None
    """The sizes of its images in their files, for a data set of the project."""
    preprocessing: Preprocessing
    """How its images are brought to one size, unless a job chooses another way."""
    proposal: Preprocessing | None
    """The preprocessing that would use all images of a data set of the project, where they differ in size and are not
    brought to one."""
    test_share: float | None
    """The share of each class that is drawn as the test part; null for a data set that has a test part."""
    eps: dict[Norm, float]
    """Default radius per norm, in pixel units of images in [0, 1]."""
    size: int | None
    """Bytes of its file, for a data set of the project."""
    sha256: str | None
    """SHA-256 of its file, for a data set of the project."""
    refused: int | None
    """Number of images that the inspection refused and no run uses, for a data set of the project; the report gives the
    reasons."""
    unread: int | None
    """Number of files that are not read, since they are not images or lie in no class folder of a part, for a data set
    of the project; the report gives the reasons."""
    transparent: int | None
    """Number of images with transparent pixels, which are shown on white, for a data set of the project."""
    overlap: int | None
    """Number of test images that are also in the training or held-out part, for a data set of the project."""
    repeated: int | None
    """Number of images that are equal to one before them in the same part, for a data set of the project."""
    conflicting: int | None
    """Number of images that are equal to one of another class, for a data set of the project."""
    warnings: list[WarningRecord]
    """Reasons to doubt it, found by the inspection of a data set of the project."""
    thumbnails: list[ThumbnailLink]
    """Small versions of some of its images, for a data set of the project."""
    failure: AssetFailure | None
    """Why it was refused; null if it was not."""
    created_at: datetime | None
    """When it was posted, for a data set of the project."""
    finished_at: datetime | None
    """When its inspection ended, for a data set of the project."""
    report: str | None
    """Address of its inspection report."""


class Method(Listed):
    """A training method that a job can name."""

    object: Literal["method"]
    """Type of the object."""
    description: str
    """Description in one sentence."""
    norms: list[Norm] | None
    """The norms it attacks if a job names none; null if a job must name them."""
    min_norms: int
    """Minimum number of norms."""
    max_norms: int
    """Maximum number of norms."""
    options: dict[str, str | float]
    """Options of the method beside norms and steps, each with its default."""


class Architecture(Listed):
    """A network that a training job can name."""

    object: Literal["architecture"]
    """Type of the object."""
    description: str
    """Description in one sentence."""
    shape: tuple[int, int, int] | None
    """The only image shape it takes (channels, height, width); null if it takes more than one."""
    learning_rate: float
    """Default of the highest learning rate of a run, with that optimiser."""
    optimizer: Optimizer
    """Default optimiser."""


class Threat(Listed):
    """A threat that `evaluation.unseen` of a job can name."""

    object: Literal["threat"]
    """Type of the object."""
    description: str
    """Description in one sentence."""
    kind: Literal["search", "ascent", "corruption"]
    """search: a random search that sees the logits alone. ascent: gradient steps. corruption: drawn, not searched."""
    unit: str
    """What a budget counts."""
    budgets: list[float]
    """The default budgets."""
    max_budget: float
    """The largest budget."""
    is_integer: bool
    """Whether a budget must be an integer."""
    queries: int | None
    """The default number of queries of a search; null for the other kinds."""
    steps: int | None
    """The default number of steps of an ascent; null for the other kinds."""
    presets: list[str]
    """The presets that have it."""
