"""What an inspection of an uploaded file finds: a data set's or a base model's. No torch.

`python -m core inspect-dataset` and `inspect-model` write it as report.json; the service stores and shows it. Names in
it were chosen by whoever made the file: they are shortened, and hold nothing that does not print.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from core.schema.catalog import Norm
from core.schema.record import Record


class RefusedImage(Record):
    """An image that no run will see."""

    name: str
    """Its path in the archive."""
    reason: str
    """Why."""


class Twins(Record):
    """A test image that is, pixel by pixel, also in the training part."""

    test: str
    """Its path."""
    train: str
    """The path of the first such training image."""


class Overlap(Record):
    """How much of the test part a run has seen in training."""

    count: int
    """Test images that are in the training part, too."""
    examples: tuple[Twins, ...]
    """Some of them."""


class Thumbnail(Record):
    """A small PNG of one image."""

    file: str
    """Its name beside the report."""
    name: str
    """The image's path in the archive."""
    part: Literal["train", "test"]
    """The part it belongs to."""
    label: str
    """Its class."""


class DatasetInspection(Record):
    """What is in a data set."""

    kind: Literal["dataset"] = "dataset"
    sha256: str
    """Hash of the file."""
    size: int
    """Bytes of the file."""
    shape: tuple[int, int, int]
    """Channels, height and width of every image that runs see."""
    classes: tuple[str, ...]
    """The classes in the order of their labels."""
    train: dict[str, int]
    """Training images by class."""
    test: dict[str, int]
    """Test images by class."""
    ignored: int
    """Files that are no images by their name or place."""
    refused: int
    """Images that no run will see."""
    refused_by_reason: dict[str, int]
    """How many for which reason."""
    refused_images: tuple[RefusedImage, ...]
    """The first of them."""
    overlap: Overlap
    """Test images that are in the training part, too."""
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


class InspectionWarning(Record):
    """What is doubtful about a model."""

    code: str
    """Stable, for programs: those of the warnings with which a run begins."""
    message: str
    """What it is."""


class ModelInspection(Record):
    """What a base model is."""

    kind: Literal["model"] = "model"
    source: Literal["checkpoint", "safetensors", "torch"]
    """What the file was: a checkpoint of Temper, or weights of others."""
    source_sha256: str
    """Hash of the file that was uploaded."""
    sha256: str
    """Hash of the checkpoint that runs start from."""
    size: int
    """Bytes of that checkpoint."""
    architecture: str
    """The network."""
    recognised: bool
    """Whether nobody had said which network it is, and it was told from the weights."""
    parameters: int
    """How many it has."""
    shape: tuple[int, int, int]
    """Channels, height and width of the images that it takes."""
    classes: int
    """How many it tells apart."""
    mean: tuple[float, ...]
    """What is subtracted from images first; empty where nothing is."""
    std: tuple[float, ...]
    """What they are divided by then."""
    left_out: int
    """Tensors of the file that the network does not run."""
    claims: dict[Norm, float]
    """The radius, per norm, at which it says to be robust."""
    base_sha256: str | None
    """Hash of the weights that it was made from, where it says so."""
    data_sha256: str | None
    """Hash of the data that it was made with, where it says so."""
    looked_at: Literal["digits", "noise"]
    """The images that it was inspected on: the digits where they fit it, else noise, which shows neither accuracy nor
    a wrong normalisation; the first run's own inspection does."""
    warnings: tuple[InspectionWarning, ...]
    """What was found doubtful."""


Findings = Annotated[DatasetInspection | ModelInspection, Field(discriminator="kind")]
_findings: TypeAdapter[DatasetInspection | ModelInspection] = TypeAdapter(Findings, config=ConfigDict(defer_build=True))


def read(content: bytes) -> DatasetInspection | ModelInspection:
    """Read a report. Raises pydantic's ValidationError."""
    return _findings.validate_json(content)
