"""The spec of an import: what a user says of third-party weights."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.schema.catalog import ARCHITECTURES, DATASETS, Norm, find_architecture
from core.schema.model_zoo import PUBLISHED, find_published, find_refused
from core.schema.radius import Radius, check_radius
from core.schema.record import Record
from core.schema.suggestions import check_known


def _split_at_commas(value: Any) -> Any:
    """Take "0.49, 0.48, 0.45" as a list, which is how a command line gives one."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Normalisation = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], BeforeValidator(_split_at_commas), Field(max_length=16)
]


class ImportSpec(Record):
    """Convert third-party weights into a checkpoint that a run can start from."""

    architecture: str = Field(default="", examples=list(ARCHITECTURES))
    """The network, by its name in the catalogue, such as wide-resnet-34-10, or timm/ or torchvision/ and a name of that
    library."""
    published: str = ""
    """The name of the weights in RobustBench, such as Carmon2019Unlabeled, if --list shows it: it gives network, data
    set, normalisation and claimed robustness."""
    dataset: str = ""
    """The data set the weights were trained on, by its name in the catalogue: it gives image size and classes."""
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], BeforeValidator(_split_at_commas)] = Field(
        default=(), max_length=3
    )
    """Channels, height and width of the images they were trained on, if the data set is not in the catalogue."""
    classes: StrictInt | None = Field(default=None, ge=2, le=1_000_000)
    """The number of classes; by default that of the data set, or of the outputs of the last layer."""
    mean: Normalisation = ()
    """Per channel, the mean subtracted from images in [0, 1]; by default that of the file or of the published entry."""
    std: Normalisation = ()
    """Per channel, the standard deviation that images are divided by; by default that of the file or of the published
    entry."""
    norm: Norm | None = None
    """The norm the weights are claimed to be robust to; every run checks the claim."""
    eps: Radius | None = None
    """The radius of the claim, in pixel units of images in [0, 1]."""
    key: str = ""
    """Where in the file the weights are, such as state_dict; by default they are searched, averaged ones first."""

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, name: str) -> str:
        return name if not name or find_architecture(name) else check_known("architecture", name, ARCHITECTURES)

    @field_validator("published")
    @classmethod
    def _check_published(cls, name: str) -> str:
        found = [entry.name for entry in find_published(name)]
        if len(found) > 1:
            raise PydanticCustomError(
                "ambiguous_name", "{name} names several: give one of {names}", {"name": name, "names": ", ".join(found)}
            )
        if name and not found and (refused := find_refused(name)):
            raise PydanticCustomError(
                "refused_model",
                "{name} is not supported: {reason}",
                {"name": refused[0].name, "reason": refused[0].reason},
            )
        if name and not found:
            return check_known("published model", name, PUBLISHED)
        return found[0] if found else ""

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, name: str) -> str:
        return name if not name else check_known("data set", name, DATASETS)

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (0, 3):
            raise PydanticCustomError("shape", 'give channels, height and width, such as "3,32,32"')
        return shape

    @field_validator("eps")
    @classmethod
    def _check_claim(cls, eps: float | None, info: ValidationInfo) -> float | None:
        norm = info.data.get("norm")
        if (eps is None) != (norm is None):
            raise PydanticCustomError("claim", "give norm and eps together, or neither")
        if eps is not None and norm is not None:
            entry = DATASETS.get(info.data.get("dataset", ""))
            check_radius(norm, eps, info.data.get("shape") or (entry.shape if entry else None))
        return eps
