"""The catalogue: norms, data sets, architectures, base models and methods by name, with the defaults that each brings.

The entries are data and stand in catalog.toml. `core.schema.spec` takes its defaults from them, and the service lists
them. Plain dataclasses, because every import of the schema loads them.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from core.schema.fraction import read_fraction

Kind = Literal["finetune", "train", "evaluate"]
"""What a run does."""

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

Augmentation = Literal["none", "crop-flip", "resized-crop-flip"]

EXTRA_SHARE = 0.5
"""The share of a second data set in each batch, by default."""
DOWNLOADS = Path("~/.cache/temper")
"""Folder of downloaded data sets, each in a folder with its name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of the catalogue."""

    name: str
    """The name that a spec uses."""
    description: str
    """What it is, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set that Temper loads by name, and the recipe that fits it."""

    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    """Number of classes."""
    train_examples: int
    """Images in the training part."""
    test_examples: int
    """Images in the test part."""
    eps: dict[Norm, float]
    """The usual radius per norm, in pixel units of images in [0, 1]."""
    epochs: int
    """Epochs of a fine-tuning run."""
    train_epochs: int
    """Epochs of a run from random weights."""
    batch_size: int
    """Images per training step."""
    steps: dict[Norm, int]
    """Steps of the training attack per norm."""
    weight_decay: float
    """Weight decay of SGD."""
    augmentation: Augmentation
    """How training changes an image before it is attacked."""
    bound: float = 0.5
    """The LPIPS distance that perceptual adversarial training allows (Laidlaw et al. 2021)."""
    streamed: bool = False
    """Whether it is too large for memory and is read from the files of a folder, which the run must be given."""
    downloaded: bool = False
    """Whether a run that is given no path downloads it to the folder `DOWNLOADS`, or finds it there."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureEntry(Entry):
    """A network that Temper builds by name."""

    shape: tuple[int, int, int] | None = None
    """The only image shape it takes (channels, height, width); null when it takes more than one."""
    learning_rate: float
    """The default of the highest learning rate of a run."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Entry):
    """Weights that Temper ships: robust to one norm, ready to be fine-tuned."""

    architecture: str
    """The network the weights belong to."""
    dataset: str
    """The data set they were trained on."""
    norm: Norm
    """The norm they were made robust to."""
    eps: float
    """The radius they were made robust at."""
    sha256: str
    """Hash of the weights file."""


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A way to turn a batch of images and labels into a loss."""

    norms: tuple[Norm, ...] | None = None
    """The norms it attacks by default; null when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float] = field(default_factory=dict)
    """The options it takes beside norms and steps, each with its default."""


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def read_entries(kind: type[AnyEntry], tables: Mapping[str, Mapping[str, Any]]) -> Mapping[str, AnyEntry]:
    """Make an entry of each TOML table, which is named after it. Raises TypeError for an unknown or a missing key."""
    return {
        name: kind(name=name, **{key: _to_python(key, value) for key, value in table.items()})
        for name, table in tables.items()
    }


def _to_python(key: str, value: Any) -> Any:
    """Make of what TOML has what the entries have: tuples of its arrays, and floats of radii written as fractions."""
    match value:
        case list():
            return tuple(value)
        case dict():
            return {name: _to_python(key, inner) for name, inner in value.items()}
        case str() if key == "eps":
            return read_fraction(value)
    return value


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
DATASETS = read_entries(DatasetEntry, _TABLES["datasets"])
ARCHITECTURES = read_entries(ArchitectureEntry, _TABLES["architectures"])
MODELS = read_entries(ModelEntry, _TABLES["models"])
METHODS = read_entries(MethodEntry, _TABLES["methods"])

TIMM = "timm/"
"""Prefix of the name of a network that the timm library builds."""


def find_architecture(name: str) -> ArchitectureEntry | None:
    """Find a network by name: one of ARCHITECTURES, or "timm/" and a name of timm's; None for any other name.

    Only the run finds out whether timm has a network of that name.
    """
    if re.fullmatch(rf"{TIMM}[a-z0-9_]+", name):
        # Most of timm's networks are transformers or train as they do; the E-AT paper takes this rate for XCiT.
        return ArchitectureEntry(name=name, description="A classifier of timm's.", learning_rate=1e-4)
    return ARCHITECTURES.get(name)
