"""The report of the inspection of an uploaded data set or base model.

`python -m core inspect-dataset` and `inspect-model` write it as report.json; the service stores and shows it. Names in
it come from the untrusted file: they are shortened, and characters that cannot be shown are replaced.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from core.schema.catalog import Norm
from core.schema.preprocessing import Preprocessing, Sizes
from core.schema.progress import WarningRecord
from core.schema.record import Record

PartName = Literal["train", "test", "held_out"]
"""A part of a data set: to train on, to measure on, or held out to watch the training by."""


DatasetFormat = Literal["class folders", "arrays", "parquet", "cifar"]
"""How the images of a data set are stored: as files in class folders, in arrays of NumPy, in Parquet files, or as CIFAR
is."""


class RefusedImage(Record):
    """An image that runs leave out."""

    name: str
    """Its path in the archive."""
    reason: str
    """Why it is left out."""


class UnreadFile(Record):
    """A file that is not read, since it is not an image or belongs to no class."""

    name: str
    """Its path in the archive."""
    reason: str
    """Why it is not read."""


class Twins(Record):
    """Two images that are equal in every pixel."""

    name: str
    """The path of one."""
    twin: str
    """The path of the other."""


class Doubles(Record):
    """Images that occur more than once."""

    count: int
    """Number of images that are equal to another one."""
    examples: tuple[Twins, ...]
    """Some of them."""


class Thumbnail(Record):
    """A small PNG of one image."""

    file: str
    """Its name beside the report."""
    name: str
    """The image's path in the archive."""
    part: PartName
    """The part it belongs to."""
    label: str
    """Its class."""


class DatasetInspection(Record):
    """The content of a data set."""

    kind: Literal["dataset"] = "dataset"
    sha256: str
    """SHA-256 of the file."""
    size: int
    """Size of the file in bytes."""
    format: DatasetFormat
    """How its images are stored."""
    shape: tuple[int, int, int]
    """Channels, height and width of every image that runs use, unless a job brings them to another size."""
    sizes: Sizes
    """The sizes of the images as they are in their files."""
    preprocessing: Preprocessing
    """How the images are brought to one size."""
    proposal: Preprocessing | None
    """Where images differ in size and are not brought to one: the preprocessing that would use all of them."""
    test_share: float | None
    """The share of each class that was drawn as the test part; null where the data set has a test part."""
    classes: tuple[str, ...]
    """The classes in the order of their labels."""
    names_file: str | None
    """The file or array in it that names the classes, where labels are numbers; null where the labels or folders are
    the names."""
    root: str
    """The folder in the archive that holds the parts; empty for the archive itself, and for images that are not files
    in class folders."""
    folders: dict[PartName, str]
    """The folder of each part, below the root; empty for images that are not files in class folders."""
    train: dict[str, int]
    """Training images by class."""
    test: dict[str, int]
    """Test images by class."""
    held_out: dict[str, int]
    """Images of the data set's own held-out part by class; empty where it has none."""
    unread: int
    """Number of files that are not read: they are not images, or lie in no class folder of a part."""
    unread_by_reason: dict[str, int]
    """Number of these by reason."""
    unread_files: tuple[UnreadFile, ...]
    """The first of these."""
    refused: int
    """Number of images that cannot be used and that runs leave out."""
    refused_by_reason: dict[str, int]
    """Number of these by reason."""
    refused_images: tuple[RefusedImage, ...]
    """The first of these."""
    transparent: int
    """Number of images with transparent pixels, which are shown on white."""
    overlap: Doubles
    """Test images that are also in the training or held-out part."""
    held_out_overlap: Doubles
    """Held-out images that are also in the training part."""
    repeated: dict[PartName, Doubles]
    """Per part, the images that are equal to one before them in the same part."""
    conflicting: Doubles
    """Images that are equal to one of another class, in any part."""
    warnings: tuple[WarningRecord, ...]
    """Reasons to doubt it."""
    thumbnails: tuple[Thumbnail, ...]
    """A few of the images."""

    @property
    def train_examples(self) -> int:
        """Images that runs train on."""
        return sum(self.train.values())

    @property
    def test_examples(self) -> int:
        """Images that runs evaluate on."""
        return sum(self.test.values())

    @property
    def held_out_examples(self) -> int:
        """Images of the data set's own held-out part."""
        return sum(self.held_out.values())


class ModelInspection(Record):
    """The properties of a base model."""

    kind: Literal["model"] = "model"
    source: Literal["checkpoint", "safetensors", "torch"]
    """The format of the file: a checkpoint of Temper, or third-party weights."""
    source_sha256: str
    """SHA-256 of the uploaded file."""
    sha256: str
    """SHA-256 of the checkpoint that runs start from."""
    size: int
    """Size of that checkpoint in bytes."""
    architecture: str
    """The network."""
    recognised: bool
    """Whether the network was not named, and recognised by its weights."""
    alternatives: tuple[str, ...] = ()
    """Networks with the same weights that compute something else, such as with another activation: where it is one of
    these, import the weights with it as architecture."""
    parameters: int
    """Number of parameters."""
    shape: tuple[int, int, int]
    """Channels, height and width of its input images."""
    classes: int
    """Number of classes."""
    mean: tuple[float, ...]
    """Per channel, the mean subtracted from images; empty without normalisation."""
    std: tuple[float, ...]
    """Per channel, the standard deviation that images are divided by."""
    key: str = ""
    """Where in the file the weights were; empty where the file is nothing else."""
    other_keys: tuple[str, ...] = ()
    """Where in the file other weights are, which were not taken: an import with one of these as key takes them."""
    left_out: int
    """Number of tensors of the file that the network does not use."""
    claims: dict[Norm, float]
    """The radius per norm at which it is claimed to be robust."""
    dataset: str | None = None
    """The name of the data set that it was trained on, if its header or the import states it."""
    eps: dict[Norm, float] = Field(default_factory=dict)
    """The radii of the run that made it; empty for third-party weights."""
    base_sha256: str | None
    """SHA-256 of the weights that it was fine-tuned from, if its header states it."""
    data_sha256: str | None
    """SHA-256 of the data that it was trained on, if its header states it."""
    looked_at: Literal["digits", "noise"]
    """The images that it was checked on: the digits where they fit it, else noise, which shows neither its accuracy nor
    a wrong normalisation; the check at the start of a run does."""
    warnings: tuple[WarningRecord, ...]
    """Reasons to doubt it."""


AnyInspection = Annotated[DatasetInspection | ModelInspection, Field(discriminator="kind")]
_adapter: TypeAdapter[DatasetInspection | ModelInspection] = TypeAdapter(
    AnyInspection, config=ConfigDict(defer_build=True)
)


def read(content: bytes) -> DatasetInspection | ModelInspection:
    """Read a report. Raises pydantic's ValidationError."""
    return _adapter.validate_json(content)
